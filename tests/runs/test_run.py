import fcntl
import json
import shutil
from types import SimpleNamespace

import pytest
import yaml

from mcit.core.errors import StateError
from mcit.core.files import sha256_file, write_json
from mcit.core.stored import write_sealed
from mcit.runs.run import Run, find_runs, open_existing
from tests.fakes.run_dir import (
    Saver,
    Streams,
    create,
    environment,
    killed_at,
    opened,
    plan_content,
    plan_record,
    resolved,
    train,
    whole,
)


def test_a_new_run_has_its_files_and_opening_it_again_changes_nothing(tmp_path):
    run = opened(tmp_path)
    assert run.layout.root.name == f"toy-{plan_content(resolved())['digest'][:8]}"
    before = {p: p.read_bytes() for p in run.layout.root.rglob("*") if p.is_file()}
    again = opened(tmp_path)
    assert {p: p.read_bytes() for p in again.layout.root.rglob("*") if p.is_file()} == before
    assert again.notes == []
    assert open_existing(run.layout.root).config() == resolved()
    assert yaml.safe_load(run.layout.resolved.read_text()) == resolved()


def test_a_finished_run_is_not_touched_by_another_start(tmp_path):
    run = whole(tmp_path)
    before = {p: p.read_bytes() for p in run.layout.root.rglob("*") if p.is_file()}
    assert whole(tmp_path).finished()
    assert {p: p.read_bytes() for p in run.layout.root.rglob("*") if p.is_file()} == before


def test_every_difference_is_named_and_can_be_accepted_once_and_for_all(tmp_path):
    opened(tmp_path)
    content = plan_content(resolved(), base_sha256="1" * 64, recipes={"a": "digest-a", "b": "edited"})
    content["stages"][0]["method_state"] = {"l2": 2}
    env = environment(torch="2.14.0")
    with pytest.raises(StateError) as error:
        opened(tmp_path, content=content, env=env)
    text = str(error.value)
    for part in (
        "base_sha256: 000000000000… -> 111111111111…",
        "recipe b: digest-b -> edited",
        "state version of l2 in 01-a: 1 -> 2",
        "version of torch: 2.13 -> 2.14",
        "--accept-changes",
    ):
        assert part in text
    assert len(error.value.problems) == 4 and error.value.exit_code == 5
    run = opened(tmp_path, content=content, env=env, accept_changes=True)
    assert set(run.ledger.events("accepted_changes")[0]["changes"]) >= {"recipe b", "version of torch"}
    opened(tmp_path, content=content, env=env)
    with pytest.raises(StateError, match="recipe b: edited -> digest-b"):
        opened(tmp_path)


def test_layout_and_patch_versions_may_change_and_are_noted_once(tmp_path):
    opened(tmp_path)
    other = resolved(micro_batch=8)
    for _ in range(2):
        run = opened(tmp_path, other, env=environment(torch="2.13.1"))
    noted = run.ledger.events("layout")
    assert len(noted) == 1
    assert noted[0]["changes"]["engine.micro_batch"] == [4, 8]
    assert noted[0]["changes"]["environment.versions.torch"] == ["2.13.0", "2.13.1"]
    assert "differs from the first start: engine.micro_batch: 4 -> 8" in run.notes
    opened(tmp_path)
    assert len(run.ledger.events("layout")) == 2


def test_an_unfinished_run_of_the_same_name_is_not_left_behind_unnoticed(tmp_path):
    first = opened(tmp_path)
    changed = resolved(seed=2)
    with pytest.raises(StateError) as error:
        opened(tmp_path, changed)
    text = str(error.value)
    assert "seed: 1 -> 2" in text and str(first.layout.root) in text
    for cure in ("restore the config", "name:", "--new"):
        assert cure in text
    assert find_runs(tmp_path)[0].layout.root == first.layout.root and len(find_runs(tmp_path)) == 1
    second = opened(tmp_path, changed, new=True)
    assert second.layout.root != first.layout.root
    opened(tmp_path, changed)  # it exists now: it simply continues
    opened(tmp_path)


def test_a_finished_run_or_another_name_does_not_stand_in_the_way(tmp_path):
    whole(tmp_path)
    opened(tmp_path, resolved(seed=2))
    opened(tmp_path / "other", {**resolved(), "name": "first"})
    opened(tmp_path / "other", {**resolved(seed=3), "name": "second"})


@pytest.mark.parametrize("victim", ["plan.json", "resolved.yaml"])
def test_a_damaged_run_does_not_stop_another_one(tmp_path, victim):
    first = opened(tmp_path)
    (first.layout.root / victim).write_text("{: [")
    assert opened(tmp_path, resolved(seed=2)).config() == resolved(seed=2)


def test_the_message_about_an_unfinished_run_does_not_name_layout(tmp_path):
    opened(tmp_path)
    with pytest.raises(StateError) as error:
        opened(tmp_path, resolved(seed=2, micro_batch=64))
    assert "micro_batch" not in str(error.value)


@pytest.mark.parametrize("victim", ["adapter/weights.json", "methods/l2/state.json", "lineage.json", "metrics.jsonl"])
@pytest.mark.parametrize("damage", ["edited", "cut", "missing"])
def test_a_changed_committed_file_is_named(tmp_path, victim, damage):
    run = whole(tmp_path)
    path = run.layout.stage("01-a") / victim
    if damage == "edited":
        data = path.read_bytes()
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    for act in (lambda: opened(tmp_path), lambda: run.verify("01-a"), lambda: _enter(Run(run.layout.root))):
        with pytest.raises(StateError) as error:
            act()
        assert str(path) in str(error.value)
        assert ("sha256" in str(error.value)) == (damage != "missing")
    run.verify("02-b")


def _enter(run):
    with run.locked():
        pass


@pytest.mark.parametrize("name", ["config.yaml", "resolved.yaml", "plan.json", "environment.json"])
def test_a_changed_root_file_is_named_by_its_checksum(tmp_path, name):
    run = opened(tmp_path)
    (run.layout.root / name).write_text((run.layout.root / name).read_text() + " ")
    for act in (lambda: opened(tmp_path), lambda: open_existing(run.layout.root), run.config):
        with pytest.raises(StateError, match="sha256") as error:
            act()
        assert name in str(error.value)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"files": 3}', '{"files": {"a": {}}}'])
def test_a_final_folder_without_a_valid_manifest_is_an_error_that_names_it(tmp_path, content):
    run = whole(tmp_path)
    manifest = run.layout.stage("02-b") / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_text(content)
    with pytest.raises(StateError) as error:
        opened(tmp_path)
    assert str(manifest) in str(error.value)
    if content is None:
        with pytest.raises(StateError, match="no manifest"):
            run.is_committed("02-b")


def test_a_stage_that_was_committed_and_is_gone_is_said(tmp_path):
    run = whole(tmp_path)
    shutil.rmtree(run.layout.stage("01-a"))
    again = opened(tmp_path)
    assert again.notes == [f"{run.layout.stage('01-a')}: was committed and is gone; it is trained again"]


def test_a_missing_ledger_line_is_added(tmp_path):
    run = whole(tmp_path)
    lines = run.layout.ledger.read_text().splitlines()
    kept = [line for line in lines if not (json.loads(line).get("stage") == "02-b" and "committed" in line)]
    run.layout.ledger.write_text("\n".join(kept) + '\n{"torn')
    again = opened(tmp_path)
    assert [e["stage"] for e in again.ledger.events("stage_committed")] == ["01-a", "02-b"]
    assert again.ledger.events("stage_committed")[-1]["recovered"] is True
    run.layout.ledger.unlink()
    anew = opened(tmp_path)
    assert [e["event"] for e in anew.ledger.events()] == ["created", "stage_committed", "stage_committed"]
    assert [note for note in anew.notes if "begins without the creation" in note]
    assert opened(tmp_path).notes == []


def test_leftovers_of_a_draft_whose_stage_is_committed_are_removed(tmp_path):
    run = whole(tmp_path)
    (run.layout.draft("01-a") / "live").mkdir(parents=True)
    (run.layout.root / ".plan.json.abcd1234.tmp").write_text("half")
    opened(tmp_path)
    assert not run.layout.draft("01-a").exists()
    assert not list(run.layout.root.glob(".*"))


def test_a_kill_while_the_run_is_created_is_mended_by_the_next_start(tmp_path):
    number = 0
    while True:
        number += 1
        home = tmp_path / str(number)
        if not killed_at(number, lambda home=home: opened(home)):
            break
        run = opened(home)
        assert run.config() == resolved()
        assert [e["event"] for e in run.ledger.events()] == ["created"]
        shutil.rmtree(home)
    assert number > 10


def test_stages_without_the_root_manifest_are_not_overwritten(tmp_path):
    run = whole(tmp_path)
    run.layout.manifest.unlink()
    with pytest.raises(StateError, match="has stages") as error:
        opened(tmp_path)
    assert str(run.layout.manifest) in str(error.value)


def test_a_run_locked_by_somebody_else_is_refused(tmp_path):
    run = opened(tmp_path)
    with run.locked():
        with pytest.raises(StateError, match="being written by process"):
            opened(tmp_path)
        with pytest.raises(StateError, match="being written by process"), Run(run.layout.root).locked():
            pass


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(StateError, match="no such folder"):
        open_existing(tmp_path / "nothing")
    with pytest.raises(StateError, match="no run directory"):
        open_existing(tmp_path)
    assert find_runs(tmp_path / "nothing") == []
    run = opened(tmp_path)
    with pytest.raises(StateError, match="is a folder of runs") as found:
        open_existing(tmp_path)
    assert f"name one of its 1: {run.layout.root}" in str(found.value)


@pytest.mark.parametrize("content", [[], {}, {"name": "toy"}, 3])
def test_a_plan_that_is_none_is_refused(tmp_path, content):
    """Whole by its checksum, as one of another version would be."""
    run = create(tmp_path, plan_record([["a"]]))
    write_json(run.layout.plan, content)
    names = ("config.yaml", "resolved.yaml", "plan.json", "environment.json")
    files = {n: {"bytes": (tmp_path / n).stat().st_size, "sha256": sha256_file(tmp_path / n)} for n in names}
    write_sealed(run.layout.manifest, {"files": files})
    with pytest.raises(StateError, match="is not a plan of a run") as error:
        run.plan()
    assert "plan.json" in str(error.value)


def test_a_damaged_ledger_line_is_told_and_a_torn_one_cut_off(tmp_path):
    run = whole(tmp_path)
    lines = run.layout.ledger.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"stage_started", b"stage_started ")
    run.layout.ledger.write_bytes(b"\n".join(lines[:-1]) + b'\n{"event": "eval", "ti')
    again = opened(tmp_path)
    assert again.notes == [
        f"{run.layout.ledger}: the last line was torn and is cut off",
        f"{run.layout.ledger}: damaged lines are left out: 2",
    ]
    text = run.layout.ledger.read_bytes()
    assert lines[1] in text and b'"eval", "ti' not in text
    once_more = opened(tmp_path)
    assert once_more.ledger.events() == again.ledger.events() and once_more.notes == again.notes[1:]


def test_what_does_not_belong_to_a_committed_stage_is_named(tmp_path):
    run = whole(tmp_path)
    (run.layout.stage("01-a") / "adapter" / "more.json").write_text("{}")
    with pytest.raises(StateError, match="not listed") as error:
        opened(tmp_path)
    assert error.value.where.endswith("01-a/adapter/more.json")


@pytest.mark.parametrize("folder", [".", "evals/after-01/t", "blobs", "report"])
def test_temporary_files_of_killed_writes_are_removed_and_those_of_living_ones_stay(tmp_path, folder):
    run = whole(tmp_path)
    home = run.layout.root / folder
    home.mkdir(parents=True, exist_ok=True)
    (home / ".x.json.abcd1234.tmp").write_text("half")
    (home / ".x.abcd1234.tmp").mkdir()
    (home / ".mine").write_text("kept")
    with open(home / ".y.json.abcd1234.tmp", "w") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        opened(tmp_path)
        assert sorted(p.name for p in home.glob(".*")) == [".mine", ".y.json.abcd1234.tmp"]
    opened(tmp_path)
    assert [p.name for p in home.glob(".*")] == [".mine"]


def test_status_questions(tmp_path):
    run = opened(tmp_path)
    assert run.committed() == [] and not run.finished() and run.live_step("01-a") is None
    with run.draft("01-a"):
        pass
    assert run.live_step("01-a") == 0
    train(run, "01-a", until=3)
    assert run.live_step("01-a") == 2
    train(run, "01-a")
    assert run.committed() == ["01-a"] and run.live_step("01-a") is None and not run.finished()
    train(run, "02-b")
    assert run.finished()


@pytest.mark.parametrize(("rank", "lines"), [(0, 2), (1, 1)])
def test_of_several_ranks_only_rank_0_writes_the_ledger(tmp_path, rank, lines):
    """The line of the creation is there; another one comes from rank 0 alone, however the run got its ranks."""
    ranks = SimpleNamespace(rank=lambda: rank, size=lambda: 2)
    shared = opened(tmp_path / "shared")
    shared.share(ranks)
    given = Run(opened(tmp_path / "given").layout.root, ranks=ranks)
    for run in (shared, given):
        run.ledger.append("eval", after=1)
        assert len(run.ledger.events()) == lines


def test_a_draft_keeps_two_checkpoints_unless_told(tmp_path):
    """So that a damaged newest one still leaves one to go on from, at the disk space of two: of 1, 2, 3 stay 2 and 3."""
    run = opened(tmp_path)
    with run.draft("01-a") as draft:
        for step in (1, 2, 3):
            draft.checkpoint(step, Saver(), Saver(), Streams())
    assert sorted(p.name for p in run.layout.lives("01-a").iterdir()) == ["000002", "000003"]


def test_a_foreign_run_with_the_same_short_digest_is_refused(tmp_path):
    run = opened(tmp_path)
    content = plan_content(resolved())
    content["digest"] = content["digest"][:8] + "0" * 56
    with pytest.raises(StateError, match="another run"):
        opened(tmp_path, content=content)
    assert run.config() == resolved()
