"""Rolling back: everything after the stage is gone, what is before is untouched, and a kill at any moment leaves a run."""

import pytest

from mcit.core.errors import ConfigError
from mcit.core.files import write_json, write_text
from mcit.core.stored import write_manifest
from mcit.runs.rollback import removed_by, rollback
from mcit.runs.run import Run
from tests.fakes.run_dir import killed_at, resolved, stage_bytes, train, whole

STAGES = ("a", "b", "c")


def finished(folder):
    """Three stages with scores, exports of one, two and three of them, and one that nobody can read."""
    run = whole(folder, resolved(stages=STAGES))
    names = run.stage_folders()
    for k in range(4):
        write_json(run.layout.evals(k) / "task" / "score.json", {"after": k})
    for k in range(1, 4):
        exported(run, f"{names[k - 1]}-adapter", names[:k])
    write_text(run.layout.exports / "odd" / "export.json", "{")
    return run


def exported(run, name, stages):
    record = {
        "kind": "adapter",
        "run": "r",
        "base": "b",
        "base_sha256": "0" * 64,
        "stages": stages,
        "lineage": "1" * 64,
    }
    folder = run.layout.exports / name
    folder.mkdir(parents=True)
    write_manifest(folder, name="export.json", extra=record)


def there(run):
    return sorted(str(p.relative_to(run.layout.root)) for p in run.layout.root.rglob("*") if p.is_dir())


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_what_goes_and_what_stays(tmp_path, keep):
    run = finished(tmp_path)
    before = {p: p.read_bytes() for p in run.layout.root.rglob("*") if p.is_file()}
    names = run.stage_folders()
    with run.locked():
        removed = rollback(run, keep)
    assert run.committed() == names[:keep]
    gone = {f"stages/{n}" for n in names[keep:]} | {f"exports/{n}-adapter" for n in names[keep:]}
    gone |= {f"evals/after-{k:02d}" for k in range(keep + 1, 4)} | {"exports/odd"}
    assert set(removed) == gone
    after = {p: p.read_bytes() for p in run.layout.root.rglob("*") if p.is_file()}
    expected = {p for p in before if not any(str(p.relative_to(run.layout.root)).startswith(f"{g}/") for g in gone)}
    assert set(after) - {run.layout.lock} == expected - {run.layout.lock}
    assert all(after[p] == before[p] for p in expected if p.name not in ("ledger.jsonl", "lock"))
    assert run.layout.evals(0).is_dir()
    last = run.ledger.events()[-1]
    assert (last["event"], last["to_stage"], last["removed"]) == ("rollback", keep, names[keep:])


@pytest.mark.parametrize("stages", [[], ["99-gone"], 3, None, "01-a"])
def test_an_export_of_no_known_stages_goes_with_any_rollback(tmp_path, stages):
    """And what is hidden or no folder is no export: it stays and is not told."""
    run = whole(tmp_path, resolved(stages=STAGES))
    exported(run, "unknown", stages)
    exported(run, ".hidden", ["03-c"])
    write_text(run.layout.exports / "notes.txt", "mine")
    with run.locked():
        assert rollback(run, 3) == ["exports/unknown"]
    assert sorted(p.name for p in run.layout.exports.iterdir()) == [".hidden", "notes.txt"]


def test_a_draft_goes_and_the_run_ends_in_the_same_bytes_again(tmp_path):
    straight = whole(tmp_path / "straight", resolved(stages=STAGES))
    run = whole(tmp_path / "back", resolved(stages=STAGES))
    with run.locked():
        rollback(run, 1)
        train(run, "02-b", until=3)
        assert rollback(run, 1) == ["stages/.02-b.draft"]
    again = whole(tmp_path / "back", resolved(stages=STAGES))
    assert stage_bytes(again) == stage_bytes(straight)
    commits = [e["stage"] for e in again.ledger.events("stage_committed")]
    assert commits == ["01-a", "02-b", "03-c", "02-b", "03-c"]


def test_a_stage_that_is_not_there_is_refused_and_nothing_goes(tmp_path):
    run = finished(tmp_path)
    before = there(run)
    for keep in (-1, 4):
        with run.locked(), pytest.raises(ConfigError, match="0 to 3"):
            rollback(run, keep)
    assert there(run) == before and removed_by(run, 3) == [run.layout.exports / "odd"]


def test_a_kill_at_any_moment_leaves_the_first_stages_and_going_on_ends_in_the_same_bytes(fast_path):
    straight = whole(fast_path / "straight", resolved(stages=STAGES))
    kills = 0
    for number in range(1, 100):
        run = whole(fast_path / str(number), resolved(stages=STAGES))
        names, root = run.stage_folders(), run.layout.root

        def back(root=root):
            found = Run(root)
            with found.locked():
                rollback(found, 1)

        if not killed_at(number, back):
            break
        kills += 1
        left = run.committed()
        assert left == names[: len(left)] and len(left) >= 1
        again = whole(fast_path / str(number), resolved(stages=STAGES))
        assert again.finished() and stage_bytes(again) == stage_bytes(straight)
        assert not list(root.rglob("*.removed"))
    assert kills >= 6


def test_what_the_kit_and_attacks_found_of_later_stages_goes_too(tmp_path):
    run = finished(tmp_path)
    folder = run.stage_folders()[2]
    for path in (
        run.layout.kit(2, folder),
        run.layout.kit(3, folder),
        run.layout.gold(folder),
        run.layout.attacks(folder),
    ):
        write_json(path / "kit.json", {})
    rollback(run, 2)
    left = there(run)
    assert f"kit/after-02/{folder}" in left and "kit/after-03" not in left
    assert f"attacks/{folder}" not in left and f"kit/gold/{folder}" not in left
