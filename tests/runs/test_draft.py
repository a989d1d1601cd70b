import errno
import json
import shutil

import pytest

from mcit.core.errors import Interrupted, StateError
from mcit.core.files import read_json, write_json
from mcit.core.stored import check_manifest
from mcit.runs.run import Run
from tests.fakes.ranks import on_ranks
from tests.fakes.run_dir import (
    EVERY,
    STEPS,
    Saver,
    Streams,
    json_lines,
    killed_at,
    opened,
    resolved,
    stage_bytes,
    train,
    whole,
)


def live(run, folder="01-a"):
    return sorted(p.name for p in run.layout.lives(folder).iterdir())


def test_a_stage_is_committed_whole_with_manifest_metrics_and_progress(tmp_path):
    run = opened(tmp_path)
    final = train(run, "01-a")
    assert final == run.layout.stage("01-a") and run.is_committed("01-a")
    check_manifest(final)
    listed = set(read_json(final / "manifest.json")["files"])
    there = {str(p.relative_to(final)) for p in final.rglob("*") if p.is_file()} - {"manifest.json"}
    assert listed == there
    assert {"progress.json", "metrics.jsonl", "lineage.json", "adapter/weights.json", "methods/l2/state.json"} <= there
    assert [line["step"] for line in json_lines(final / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert not run.layout.draft("01-a").exists()
    kinds = [event["event"] for event in run.ledger.events()]
    assert kinds == ["created", "stage_started", *["checkpoint"] * 3, "stage_committed"]


def test_a_committed_stage_cannot_be_drafted_again(tmp_path):
    run = opened(tmp_path)
    train(run, "01-a")
    with pytest.raises(StateError, match="committed already"), run.draft("01-a"):
        pass


def test_stopping_and_going_on_ends_in_the_same_bytes(tmp_path):
    straight = whole(tmp_path / "straight")
    run = opened(tmp_path / "stopped")
    for until in (1, 3, 4):
        assert train(run, "01-a", until=until) is None
    train(run, "01-a")
    train(run, "02-b")
    assert stage_bytes(run) == stage_bytes(straight)


def test_restore_gives_back_state_cursors_and_extra_and_cuts_metrics(tmp_path):
    run = opened(tmp_path)
    train(run, "01-a", until=3)
    assert [line["step"] for line in json_lines(run.layout.draft("01-a") / "metrics.jsonl")] == [1, 2, 3]
    engine, methods, streams = Saver(), Saver(), Streams()
    with run.draft("01-a") as draft:
        assert draft.extra == {}
        assert draft.restore(engine, methods, streams) == 2
        assert draft.extra == {"tokens": 6}
    assert streams.cursors == {"task": 6} and methods.state == {"seen": [3, 6]}
    assert engine.state["weight"] == ((1 * 31 + 3) % 1_000_003 * 31 + 6) % 1_000_003
    assert [line["step"] for line in json_lines(run.layout.draft("01-a") / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    "damage", [lambda data: data.replace(b"0.5", b"0.6"), lambda data: data[:20], lambda data: b""]
)
def test_metrics_of_a_stage_under_way_come_from_its_checkpoint(tmp_path, damage):
    """Whatever became of the file in the draft: the committed one is that of a stage that was never stopped."""
    run, straight = opened(tmp_path / "stopped"), opened(tmp_path / "straight")
    train(run, "01-a", until=3)
    path = run.layout.draft("01-a") / "metrics.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    expected = (train(straight, "01-a") / "metrics.jsonl").read_bytes()
    assert (train(run, "01-a") / "metrics.jsonl").read_bytes() == expected
    again = opened(tmp_path / "again")
    train(again, "01-a", until=3)
    (again.layout.draft("01-a") / "metrics.jsonl").unlink()
    assert (train(again, "01-a") / "metrics.jsonl").read_bytes() == expected


def test_only_the_last_checkpoints_are_kept(tmp_path):
    run = opened(tmp_path)
    engine, methods, streams = Saver(weight=1), Saver(), Streams()
    with run.draft("01-a") as draft:
        assert draft.restore(engine, methods, streams) == 0
        for step in (9, 10, 100):
            draft.checkpoint(step, engine, methods, streams)
        assert live(run) == ["000010", "000100"]
        draft.checkpoint(100, engine, methods, streams)
        assert live(run) == ["000010", "000100"]
    assert run.live_step("01-a") == 100
    with run.draft("01-a", keep=1) as draft:
        assert draft.restore(engine, methods, streams) == 100
        assert live(run) == ["000100"]


@pytest.mark.parametrize(
    "damage", ["edited", "cut", "missing", "no manifest", "torn manifest", "misspelt manifest", "one file more"]
)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    run = opened(tmp_path)
    train(run, "01-a", until=4)  # checkpoints after steps 2 and 4
    newest = run.layout.live("01-a", 4)
    victim = newest / "state.json"
    if damage == "edited":
        victim.write_text(victim.read_text().replace("weight", "weighT"))
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-3])
    elif damage == "missing":
        victim.unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    elif damage == "torn manifest":
        (newest / "manifest.json").write_text('{"files": {')
    elif damage == "misspelt manifest":
        text = (newest / "manifest.json").read_text()
        (newest / "manifest.json").write_text(text.replace('"sha256"', '"sha25x"', 1))
    else:
        (newest / "more.json").write_text("{}")
    engine, methods, streams = Saver(), Saver(), Streams()
    with run.draft("01-a") as draft:
        assert draft.restore(engine, methods, streams) == 2
    assert streams.cursors == {"task": 6}
    assert live(run) == ["000002"]
    noted = run.ledger.events("problem")[-1]
    assert noted["step"] == 4 and "000004" in noted["where"]


def test_without_any_whole_checkpoint_the_stage_starts_over(tmp_path):
    run = opened(tmp_path)
    train(run, "01-a", until=4)
    for step in (2, 4):
        (run.layout.live("01-a", step) / "streams.json").unlink()
    engine = Saver(weight=1)
    with run.draft("01-a") as draft:
        assert draft.restore(engine, Saver(), Streams()) == 0
    assert engine.state == {"weight": 1} and live(run) == []
    assert run.ledger.events("resumed")[-1]["step"] == 0
    assert json_lines(run.layout.draft("01-a") / "metrics.jsonl") == []


def test_a_failing_checkpoint_leaves_the_earlier_ones_and_no_rubbish(tmp_path, monkeypatch):
    run = opened(tmp_path)
    train(run, "01-a", until=2)

    class Full(Saver):
        def save(self, folder):
            super().save(folder)
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "big"))

    with pytest.raises(StateError, match="no space left") as error, run.draft("01-a") as draft:
        draft.restore(Saver(), Saver(), Streams())
        draft.checkpoint(4, Full(weight=2), Saver(), Streams())
    assert error.value.exit_code == 5
    assert live(run) == ["000002"]
    assert "no space left" in run.ledger.events("problem")[-1]["what"]
    train(run, "01-a")
    assert run.is_committed("01-a")


def test_a_failing_commit_keeps_the_checkpoints(tmp_path):
    run = opened(tmp_path)

    def broken(folder):
        (folder / "adapter").mkdir()
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "adapter"))

    train(run, "01-a", until=4)
    with pytest.raises(StateError, match="no space left"), run.draft("01-a") as draft:
        draft.restore(Saver(), Saver(), Streams())
        draft.commit(broken, {})
    assert not run.layout.stage("01-a").exists()
    assert sorted(p.name for p in run.layout.draft("01-a").iterdir()) == ["live", "metrics.jsonl"]
    assert run.live_step("01-a") == 4


def test_leftovers_of_an_interrupted_commit_do_not_get_into_the_next(tmp_path):
    run = opened(tmp_path)
    train(run, "01-a", until=4)
    stale = run.layout.draft("01-a") / "whole" / "adapter"
    stale.mkdir(parents=True)
    (stale / "old.json").write_text("{}")
    final = train(run, "01-a")
    assert not list(final.rglob("old.json"))


def test_an_interruption_is_written_to_the_ledger(tmp_path):
    run = opened(tmp_path)
    with pytest.raises(Interrupted), run.draft("01-a") as draft:
        draft.record(1, {"loss": 1.0})
        raise Interrupted("stopped after step 1")
    assert run.ledger.events("interrupted")[0]["stage"] == "01-a"
    assert json_lines(run.layout.draft("01-a") / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


def test_an_undefined_metric_is_null(tmp_path):
    run = opened(tmp_path)
    with run.draft("01-a") as draft:
        draft.record(1, {"loss": float("nan"), "grad": float("inf"), "note": "x", "n": 3})
    line = (run.layout.draft("01-a") / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "loss": None, "grad": None, "note": "x", "n": 3}


def test_a_kill_before_every_durable_operation_leaves_each_stage_whole_or_absent(fast_path):
    """A stage of 5 steps with checkpoints after 2, 4 and 5; killed at 1, 2, 3, … until a run survives."""
    one = resolved(stages=("a",))
    straight = stage_bytes(whole(fast_path / "straight", one))
    number = restarts = 0
    while True:
        number += 1
        home = fast_path / f"k{number}"
        if not killed_at(number, lambda home=home: whole(home, one)):
            break
        for final in (home.glob("*/stages/[0-9]*")) if home.is_dir() else ():
            check_manifest(final)
        again = whole(home, one)
        restarts += 1
        assert stage_bytes(again) == straight, f"killed at operation {number}"
        assert not list(again.layout.stages.glob(".*")), f"killed at operation {number}"
        assert [e["stage"] for e in again.ledger.events("stage_committed")] == ["01-a"]
        steps = [line["step"] for line in json_lines(again.layout.stage("01-a") / "metrics.jsonl")]
        assert steps == list(range(1, STEPS + 1))
        shutil.rmtree(home)
    assert restarts > 70  # fewer means that writes went past fault injection


def test_kills_that_follow_each_other_still_end_in_the_same_bytes(fast_path):
    straight = stage_bytes(whole(fast_path / "straight"))
    kills = 0
    while killed_at(37, lambda: whole(fast_path / "k")):
        kills += 1
        assert kills < 20, "no progress between kills"
    assert kills >= 2
    assert stage_bytes(whole(fast_path / "k")) == straight


def test_checkpoints_survive_a_kill_inside_the_commit(fast_path):
    """The step of the last checkpoint is still there whenever the stage is not: no training is lost to a commit."""
    seen = set()
    for number in range(1, 400):
        home = fast_path / f"k{number}"
        if not killed_at(number, lambda home=home: whole(home)):
            break
        for draft in home.glob("*/stages/.01-a.draft"):
            if (draft / "whole").is_dir():
                run = opened(home)
                assert run.live_step("01-a") == STEPS
                seen.add(number)
        shutil.rmtree(home, ignore_errors=True)
        if len(seen) > 5:
            break
    assert len(seen) > 5


# ---- several ranks ---------------------------------------------------------------------------------------------------
class RankSaver(Saver):
    """An engine of which rank 0 writes the shared part and each rank its own."""

    def __init__(self, ranks, **state):
        super().__init__(**state)
        self.ranks = ranks

    def save(self, folder):
        if self.ranks.rank() == 0:
            super().save(folder)
        write_json(folder / "rng" / f"{self.ranks.rank()}.json", self.state["weight"] + self.ranks.rank())

    def load(self, folder):
        super().load(folder)
        self.own = read_json(folder / "rng" / f"{self.ranks.rank()}.json")


def shared_run(path, ranks):
    """The same folder with several ranks."""
    run = Run(path)
    run.share(ranks)
    return run


def train_on(ranks, root, *, steps=4, broken=None):
    """Two checkpoints of a stage and, without `broken`, its commit; what is broken raises on rank 0."""
    run = shared_run(root, ranks)
    engine, methods, streams = RankSaver(ranks, weight=1), Saver(seen=[]), Streams()
    with run.locked(), run.draft("01-a", keep=2) as draft:
        first = draft.restore(engine, methods, streams)
        for step in range(first, steps):
            streams.position += 3
            engine.state["weight"] += step + 1
            draft.record(step + 1, {"loss": 1.0})
            if (step + 1) % EVERY == 0:
                draft.checkpoint(step + 1, engine, methods, streams, {"tokens": 7 + ranks.rank()})

        def write(out):
            if broken:
                raise StateError(broken, where="disk")
            assert ranks.rank() == 0
            write_json(out / "adapter" / "weights.json", engine.state)

        return first, dict(draft.extra), getattr(engine, "own", None), str(draft.commit(write, {"steps": steps}))


def test_ranks_share_a_draft_and_rank_0_writes_the_ledger_and_the_metrics_once(tmp_path):
    run = opened(tmp_path)
    found = on_ranks(3, lambda ranks: train_on(ranks, run.layout.root))
    assert [entry[0] for entry in found] == [0, 0, 0] and {entry[3] for entry in found} == {
        str(run.layout.stage("01-a"))
    }
    kinds = [event["event"] for event in run.ledger.events()]
    assert kinds == ["created", "stage_started", "checkpoint", "checkpoint", "stage_committed"]
    final = run.layout.stage("01-a")
    assert [line["step"] for line in json_lines(final / "metrics.jsonl")] == [1, 2, 3, 4]
    check_manifest(final)


def test_an_error_of_rank_0_in_a_commit_reaches_all_ranks_and_each_goes_on_with_its_own_part(tmp_path):
    run = opened(tmp_path)
    found = on_ranks(2, lambda ranks: train_on(ranks, run.layout.root, broken="no space left on the disk"))
    assert [type(error) for error in found] == [StateError] * 2
    assert {error.what for error in found} == {"no space left on the disk"}
    assert live(run) == ["000002", "000004"] and not run.is_committed("01-a")
    listed = read_json(run.layout.live("01-a", 4) / "manifest.json")["files"]
    assert {"rng/0.json", "rng/1.json", "state.json", "streams.json"} <= set(listed)
    assert [e["what"] for e in run.ledger.events("problem")] == ["no space left on the disk"]
    found = on_ranks(2, lambda ranks: train_on(ranks, run.layout.root))
    assert [entry[:3] for entry in found] == [(4, {"tokens": 7}, 11), (4, {"tokens": 7}, 12)]
    assert run.is_committed("01-a")


def test_ranks_agree_on_an_earlier_checkpoint_when_the_newest_is_damaged(tmp_path):
    run = opened(tmp_path)
    on_ranks(2, lambda ranks: train_on(ranks, run.layout.root, broken="x"))
    (run.layout.live("01-a", 4) / "rng" / "1.json").write_text("")
    found = on_ranks(2, lambda ranks: train_on(ranks, run.layout.root))
    assert [entry[0] for entry in found] == [2, 2]
    assert "checksum" in run.ledger.events("problem")[-1]["what"]


def test_a_lock_held_elsewhere_is_told_by_all_ranks(tmp_path):
    run = opened(tmp_path)
    with run.locked():
        found = on_ranks(2, lambda ranks: train_on(ranks, run.layout.root))
    assert [type(error) for error in found] == [StateError] * 2
    assert all("is being written by process" in error.what for error in found)


def test_probes_are_kept_as_metrics_are(tmp_path):
    """Lines after the checkpoint go with the steps after it; a commit has them all, and no file where nothing probes."""
    run = opened(tmp_path)
    parts = Saver(), Saver(), Streams()
    with pytest.raises(Interrupted), run.draft("01-a", keep=2) as draft:
        draft.restore(*parts)
        draft.probe({"step": 0, "probe": "p", "values": {}})
        draft.checkpoint(1, *parts)
        draft.probe({"step": 2, "probe": "p", "values": {}})
        assert [line["step"] for line in draft.probed()] == [0, 2]
        raise Interrupted("killed", where="here")
    with run.draft("01-a", keep=2) as draft:
        assert draft.restore(*parts) == 1
        assert [line["step"] for line in draft.probed()] == [0]
        final = draft.commit(lambda folder: None, {"steps": 1, "tokens": 1, "seconds": 1.0, "loss": 1.0})
    assert [line["step"] for line in json_lines(final / "probes.jsonl")] == [0]
