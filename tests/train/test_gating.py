"""A stage that its gate sets aside, from training to the decision of a person, on the tiny model."""

import json
import shutil
from types import SimpleNamespace

import pytest

from mcit.cli.main import main
from mcit.core.errors import ConfigError, GateStopped, StateError
from mcit.core.files import read_json, sha256_file
from mcit.core.interfaces import Silent
from mcit.core.stored import write_sealed
from mcit.evals import evaluate
from mcit.evals.audit import audit
from mcit.evals.certificate import card_rows, certify, read_certificates
from mcit.plan.record import plan_json, resolved
from mcit.report.tables import full_report, markdown
from mcit.runs import draft, gates
from mcit.runs.extend import open_branch
from mcit.runs.run import Run, open_run
from mcit.train import sequence
from mcit.train.sequence import run_sequence
from tests.fakes import slices
from tests.fakes.bench import plan_of
from tests.fakes.run_dir import older
from tests.fakes.small import Killed

LETTER = "{metric: accuracy, task: letter, at_least: 0, unit: share}"
FAILS = f"thresholds: [{{metric: success, at_least: 1.0, unit: share}}, {LETTER}]\n"
PASSES = "thresholds: [{metric: success, at_least: 0.0, unit: share}]\n"
SECOND, THIRD = "02-yesno", "03-word"


def planned(folder, text, *, own=None, third=None, **config):
    folder.mkdir(exist_ok=True)
    path = folder / "gate.yaml"
    path.write_text(text)
    stages = [
        {"recipe": "tiny/letter"},
        {"recipe": "tiny/yesno", "gate": str(path), **(own or {})},
        {"recipe": "tiny/word", **(third or {})},
    ]
    methods = [{"name": "replay", "keep": 4, "per_step": 2}]
    config = {"eval": {"tasks": "seen", "rows": 4}, "defaults": {"max_steps": 2, "methods": methods}, **config}
    return plan_of(stages=stages, **config)


def opened(plan, folder, root=None):
    start = {"resolved": resolved(plan.config), "plan_json": plan_json(plan), "environment": {"versions": {}}}
    return open_run(plan, runs_dir=folder, config_text="", root=root, **start)


def go(plan, run):
    with run.locked():
        run_sequence(plan, run, reporter=Silent())


def weights(run, stage):
    """Checksums of everything a stage committed but its clock: adapter, lineage, method state."""
    home = run.layout.stage(stage)
    files = [
        p for p in home.rglob("*") if p.is_file() and p.name not in ("manifest.json", "progress.json", "metrics.jsonl")
    ]
    return {str(p.relative_to(home)): sha256_file(p) for p in files}


def losses(run, stage):
    return [json.loads(line)["loss"] for line in (run.layout.stage(stage) / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def failed(tmp_path_factory, cache):
    """A run that stands at stage 1 because stage 2 failed; copied by the tests that go on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        home = tmp_path_factory.mktemp("failed")
        plan = planned(home, FAILS)
        run = opened(plan, home)
        with pytest.raises(GateStopped) as caught:
            go(plan, run)
        return plan, run, caught.value


@pytest.fixture
def copied(failed, tmp_path):
    plan, run, _ = failed
    root = tmp_path / run.layout.root.name
    shutil.copytree(run.layout.root, root)
    return plan, Run(root)


def test_the_stage_is_set_aside_and_the_run_stands_at_the_one_before(failed):
    plan, run, error = failed
    assert error.exit_code == 6 and "gate fail: success 0." in error.what and "mcit reject" in error.fix
    assert run.committed() == ["01-letter"] and not run.layout.evals(2).exists() and not run.finished()
    assert (run.layout.aside(SECOND) / SECOND / "adapter").is_dir() and (run.layout.aside(SECOND) / "evals").is_dir()
    record = gates.read_gate(run.layout, SECOND)
    assert (record["verdict"], record["decision"], record["by"]) == ("fail", "aside", "gate")
    assert [r["verdict"] for r in record["results"]] == ["fail", "pass"]
    assert record["gate_sha256"] == sha256_file(plan.stages[1].gate.file)
    assert record["before_sha256"] == gates.standing_digest(run, 2)  # weights and method state are as before it
    assert run.ledger.events("gate")[0]["verdict"] == "fail"
    text = markdown(full_report(run.layout.root))
    assert (
        "## Gates" in text
        and "| 02-yesno | success | at least 1 share |" in text
        and "02-yesno: fail; aside by gate" in text
    )


def test_what_asks_for_the_stage_is_told_that_it_waits(copied, tmp_path, capsys):
    """Not that `mcit resume` would finish it, which ends at the gate again."""
    _, run = copied
    root = str(run.layout.root)
    for command in (
        ["export", root, "--stage", "2", "--out", str(tmp_path / "out")],
        ["eval", root, "--after", "2"],
        ["chat", root, "--stage", "2", "--ask", "?"],
    ):
        assert main(command) == 6
        said = capsys.readouterr().err
        assert "the stage is set aside" in said and f"mcit reject {root} --stage 2" in said


def test_it_waits_for_a_decision_without_training_again(copied, monkeypatch):
    plan, run = copied
    monkeypatch.setattr(sequence, "train", None)
    with pytest.raises(GateStopped, match="gate fail"):
        go(plan, run)


def test_rejected_the_run_goes_on_as_if_it_had_never_been_trained(copied, tmp_path):
    """Against a run of the same config in which stage 2 was rejected before anything trained: the same bytes of stages 1
    and 3 with their method state, the same first loss of stage 3, the same answers.
    """
    plan, run = copied
    assert main(["reject", str(run.layout.root), "--stage", "2", "--by", "ann"]) == 0
    go(plan, run)
    assert (
        run.committed() == ["01-letter", THIRD] and run.finished() and run.ledger.events("rejected")[0]["by"] == "ann"
    )
    other = opened(plan, tmp_path / "never")
    record = {**gates.read_gate(run.layout, SECOND), "before_sha256": "0" * 64}
    gates._decide(other, record)
    go(plan, other)
    for stage in ("01-letter", THIRD):
        assert weights(run, stage) == weights(other, stage) and losses(run, stage) == losses(other, stage)
    answers = [read_json(r.layout.evals(3) / "word" / "score.json")["rows_sha256"] for r in (run, other)]
    assert answers[0] == answers[1] and not (run.layout.evals(3) / "yesno").exists()
    assert main(["status", str(run.layout.root)]) == 0
    report = full_report(run.layout.root)
    assert "| 03-word |" in markdown(report) and report["tasks"] == ["letter", "word"]
    assert report["stages"] == ["01-letter", THIRD] and [len(row) for row in report["matrix"]] == [1, 2]
    assert report["metrics"]["mfn"] is not None and report["metrics"]["forgetting"] is not None
    (third,) = [entry for entry in report["slices"] if entry["stage"] == THIRD]
    assert [one["task"] for one in third["retention"]] == ["letter"] and third["drawdown_points"]


def test_commands_know_the_stages_that_stand(copied, capsys):
    """Stage 2 was rejected: it is neither scored nor asked, and the last one is the third."""
    plan, run = copied
    root = str(run.layout.root)
    assert gates.done_stages(run) == [1] and gates.stage_choice(run, None, where="--stage") == 1
    assert main(["reject", root, "--stage", "2", "--by", "ann"]) == 0
    assert gates.done_stages(run) == [1]
    go(plan, run)
    assert gates.done_stages(run) == [1, 3] and gates.stage_choice(run, None, where="--stage") == 3
    capsys.readouterr()
    for call in (["eval", root, "--after", "2"], ["chat", root, "--stage", "2"]):
        assert main(call) == 2
        told = capsys.readouterr().err
        assert "stage 2 was rejected at its gate" in told and "one of 0, 1, 3" in told
    assert main(["eval", root, "--combine", "linear", "--stages", "1,2"]) == 2
    assert "stage 2 is not committed" in capsys.readouterr().err
    assert main(["eval", root, "--after", "3", "--task", "word"]) == 0 and not run.layout.evals(2).exists()


def test_a_later_gate_on_what_is_kept_can_pass_after_a_rejection(tmp_path):
    """What the rejected stage trained is not scored any more and so is nothing that could be lost."""
    later = tmp_path / "later.yaml"
    later.write_text("thresholds: [{metric: drawdown, at_most: 100, unit: points}]\n")
    plan = planned(tmp_path, FAILS, third={"gate": str(later)})
    run = opened(plan, tmp_path)
    with pytest.raises(GateStopped):
        go(plan, run)
    gates.reject(run, 2, by="ann")
    go(plan, run)
    record = gates.read_gate(run.layout, THIRD)
    assert record["verdict"] == "pass" and run.finished()


def test_promoted_in_somebodys_name(copied, capsys):
    plan, run = copied
    before = read_json(run.layout.aside(SECOND) / SECOND / "manifest.json")
    assert main(["promote", str(run.layout.root), "--stage", "2", "--by", "bob", "--json"]) == 0
    assert '"decision": "promoted"' in capsys.readouterr().out
    assert run.committed() == ["01-letter", SECOND] and read_json(run.layout.stage(SECOND) / "manifest.json") == before
    assert (run.layout.evals(2) / "yesno" / "score.json").is_file() and not run.layout.aside(SECOND).exists()
    go(plan, run)
    assert run.committed() == ["01-letter", SECOND, THIRD] and gates.read_gate(run.layout, SECOND)["by"] == "bob"
    with pytest.raises(ConfigError, match="was not set aside by a gate"):
        gates.reject(run, 2, by="ann")


def test_a_branch_knows_what_was_decided_on_the_stages_that_it_shares(copied):
    plan, parent = copied
    with parent.locked():
        gates.promote(parent, 2, by="bob")
    start = {"resolved": resolved(plan.config), "plan_json": plan_json(plan), "environment": {"versions": {}}}
    start["resolved"] = {**start["resolved"], "name": "branch"}
    start["plan_json"] = {**start["plan_json"], "name": "branch", "digest": "b" * 64}
    given = SimpleNamespace(config=SimpleNamespace(name="branch"), digest="b" * 64, stages=plan.stages)
    home = parent.layout.root.parent
    child = open_branch(given, parent, runs_dir=home, stages=2, config_text="", **start)
    with child.locked():
        certify(child, 2)
    assert gates.read_gate(child.layout, SECOND) == gates.read_gate(parent.layout, SECOND)
    (line,) = child.ledger.events("promoted")
    assert line["by"] == "bob" and line["shared"] and "recovered" not in line
    assert card_rows(read_certificates(child))[1][-2] == "fail; promoted by bob"
    assert [p for part in audit(child) for p in part.problems] == []


def test_decisions_that_are_refused(copied, capsys):
    plan, run = copied
    root = str(run.layout.root)
    assert main(["promote", root, "--stage", "2"]) == 2 and "a decision has a name" in capsys.readouterr().err
    assert main(["promote", root, "--stage", "2", "--by", "gate"]) == 2 and "who decides" in capsys.readouterr().err
    assert main(["promote", root, "--stage", "1", "--by", "x"]) == 2 and "waiting: [2]" in capsys.readouterr().err
    kept = next((run.layout.aside(SECOND) / SECOND / "adapter").glob("*.safetensors"))
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(bytes(data))
    with pytest.raises(StateError, match="checksum differs from the manifest"):
        gates.promote(run, 2, by="x")


def test_the_audit_finds_what_was_changed_of_a_decision(copied, capsys):
    """A record with a new checksum, a byte of the stage set aside, thresholds of plan.json; older ledgers know less."""
    plan, run = copied
    assert main(["reject", str(run.layout.root), "--stage", "2", "--by", "ann"]) == 0
    gate, kept = run.layout.gate(SECOND), run.layout.aside(SECOND) / SECOND

    def wrong():
        return [(p.where, p.what) for part in audit(run) for p in part.problems]

    record, data = gates.read_gate(run.layout, SECOND), gate.read_bytes()
    assert wrong() == []
    write_sealed(gate, {**record, "by": "eve", "verdict": "pass"})
    assert wrong() == [(str(gate), "is not the record that the ledger says was written")]
    easier = [{**record["results"][0], "at_least": 0.0}, record["results"][1]]
    write_sealed(gate, {**record, "results": easier})
    limits = (str(gate), "judges by other thresholds than plan.json has frozen")
    assert wrong()[1:] == [limits]
    write_sealed(gate, {**record, "stage_sha256": "0" * 64})
    assert wrong()[1:] == [(str(kept), "is another stage than the one that was judged")]
    gate.write_bytes(data)
    file = next((kept / "adapter").glob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ((where, what),) = wrong()
    assert where == str(file) and what.startswith("checksum differs from the manifest")
    file.write_bytes(whole)
    older(run, created="files", gate="sha256", rejected="sha256")
    write_sealed(gate, {**record, "by": "eve"})
    assert wrong() == []
    notes = [note.what for part in audit(run) for note in part.notes]
    assert [note.split(":")[-1] for note in notes] == [
        " an older mcit wrote it, or its beginning is lost",
        " an older mcit wrote the line, without a checksum",
    ]
    write_sealed(gate, {**record, "results": easier})
    assert wrong() == [limits]


def test_scores_of_a_stage_set_aside_are_looked_at_before_it_is_promoted(copied, capsys):
    plan, run = copied
    scored = run.layout.aside(SECOND) / "evals" / "yesno"
    given = ["promote", str(run.layout.root), "--stage", "2", "--by", "bob"]
    for name in ("score.json", "rows.json"):
        data = (scored / name).read_bytes()
        for new in (data[:-5], None):
            (scored / name).write_bytes(new) if new else (scored / name).unlink()
            assert main(given) == 5 and str(scored / name) in capsys.readouterr().err
            assert gates.read_gate(run.layout, SECOND)["decision"] == "aside"
        (scored / name).write_bytes(data)
    assert main(given) == 0


def test_a_record_that_is_gone_is_said(copied, capsys):
    plan, run = copied
    gate = run.layout.gate(SECOND)
    gate.unlink()
    assert main(["promote", str(run.layout.root), "--stage", "2", "--by", "bob"]) == 5
    assert f"{gate}: is gone" in capsys.readouterr().err
    assert [p.where for part in audit(run) for p in part.problems] == [str(gate)]
    with run.locked():
        assert [note for note in run.notes if note.startswith(f"{gate}: is gone") and "trained again" in note]


def test_a_record_of_a_stage_that_stands_is_missed_at_the_next_start(copied, capsys):
    plan, run = copied
    assert main(["promote", str(run.layout.root), "--stage", "2", "--by", "ann"]) == 0
    shutil.rmtree(run.layout.gate(SECOND).parent)
    again = Run(run.layout.root)
    with again.locked():
        said = [note for note in again.notes if note.startswith(f"{run.layout.gate(SECOND)}: is gone")]
    assert again.is_committed(SECOND) and len(said) == 1 and "stands all the same" in said[0]


def test_a_changed_gate_file_is_refused(copied):
    """Though all metrics would pass: to promote, and to go on."""
    plan, run = copied
    gate = plan.stages[1].gate
    text = open(gate.file).read()
    try:
        with open(gate.file, "w") as file:
            file.write(PASSES)
        with pytest.raises(StateError, match="was frozen with sha256"):
            gates.promote(run, 2, by="x")
        changed = planned(run.layout.root.parent / "again", PASSES)
        config = {**resolved(plan.config)}
        start = {"resolved": config, "environment": {"versions": {}}}
        content = plan_json(plan)
        content["stages"][1]["gate"] = {**content["stages"][1]["gate"], "sha256": changed.stages[1].gate.sha256}
        again = {"runs_dir": run.layout.root.parent, "config_text": "", "root": run.layout.root, "plan_json": content}
        for accept in (False, True):  # nobody can accept thresholds: they would be refused when the stage is judged
            with pytest.raises(StateError, match="gate of 02-yesno") as caught:
                open_run(plan, accept_changes=accept, **again, **start)
            assert any("thresholds cannot change" in problem.fix for problem in caught.value.problems)
        assert not run.ledger.events("accepted_changes")
    finally:
        with open(gate.file, "w") as file:
            file.write(text)


def test_a_kill_at_the_decision_and_a_stage_that_passes(tmp_path, monkeypatch):
    """Killed before the record: the next start judges what is there. Killed between record and move: it is moved."""
    plan = planned(tmp_path, PASSES)
    run = opened(plan, tmp_path)

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("mcit.train.gating.conclude", killed)
        with pytest.raises(Killed):
            go(plan, run)
    assert (run.layout.candidate(SECOND) / SECOND).is_dir() and run.committed() == ["01-letter"]
    with monkeypatch.context() as patch:
        patch.setattr(sequence, "train", killed)
        patch.setattr(gates, "settle", killed)
        with pytest.raises(Killed):
            go(plan, Run(run.layout.root))
    assert gates.read_gate(run.layout, SECOND)["decision"] == "promoted" and run.committed() == ["01-letter"]
    again = Run(run.layout.root)
    with again.locked():
        assert again.committed() == ["01-letter", SECOND] and (again.layout.evals(2) / "yesno" / "score.json").is_file()
    go(plan, again)
    assert again.finished() and not again.layout.candidate(SECOND).exists()
    committed = [e["stage"] for e in again.ledger.events("stage_committed")]
    assert committed == ["01-letter", SECOND, THIRD]


def test_a_kill_before_the_trained_stage_waits_keeps_its_checkpoints(tmp_path, monkeypatch):
    """The place of the candidate is made before it is moved there: that alone is no trained stage."""
    plan = planned(tmp_path, PASSES, checkpoint={"every": 1})
    run = opened(plan, tmp_path)
    rename = draft.rename_directory

    def killed(whole, final):
        if final.parent == run.layout.candidate(SECOND):
            raise Killed
        rename(whole, final)

    with monkeypatch.context() as patch:
        patch.setattr(draft, "rename_directory", killed)
        with pytest.raises(Killed):
            go(plan, run)
    again = Run(run.layout.root)
    assert run.layout.candidate(SECOND).is_dir()
    with again.locked():
        assert again.live_step(SECOND) == 2
    go(plan, again)
    assert again.finished()


def test_the_monitor_ends_the_stage_early(tmp_path):
    """No answer of the tiny model is right, so the lowest accuracy of the earlier task is below 0.9 after the first step."""
    text = PASSES + "monitor: [{metric: min_acc, at_least: 0.9, unit: share}]\n"
    probe = {"use": "stability", "every": 1, "rows": 4, "answers": 0, "norms": 0, "share": None}
    plan = planned(tmp_path, text, probes=[probe, {"use": "generation", "every": 100, "rows": 2}])
    run = opened(plan, tmp_path)
    with pytest.raises(GateStopped, match="gate fail: min_acc is 0"):
        go(plan, run)
    lines = [json.loads(line) for line in (run.layout.aside(SECOND) / SECOND / "probes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["probe"] == "generation"] == [0, 1], "the end is measured too"
    record = gates.read_gate(run.layout, SECOND)
    assert record["verdict"] == "fail" and record["ended"]["step"] == 1 and record["results"][0]["verdict"] == "pass"


def test_when_the_monitor_ends_a_stage_does_not_depend_on_the_clock(tmp_path):
    """No time is left for any measurement, and the ones that are watched are made; those of other probes are not."""
    text = PASSES + "monitor: [{metric: min_acc, at_least: 0.9, unit: share}]\n"
    probe = {"use": "stability", "every": 1, "rows": 4, "answers": 0, "norms": 0, "share": 1e-9}
    plan = planned(tmp_path, text, probes=[probe, {"use": "seen", "every": 1, "share": 1e-9}])
    run = opened(plan, tmp_path)
    with pytest.raises(GateStopped, match="gate fail: min_acc is 0"):
        go(plan, run)
    assert gates.read_gate(run.layout, SECOND)["ended"]["step"] == 1
    first = [json.loads(line) for line in (run.layout.stage("01-letter") / "probes.jsonl").read_text().splitlines()]
    assert {line["probe"] for line in first if "left_out" in line} == {"stability", "seen"}  # nothing is watched there


def test_the_monitor_sees_the_last_step_too(tmp_path):
    text = PASSES + "monitor: [{metric: min_acc, at_least: 0.9, unit: share}]\n"
    plan = planned(tmp_path, text, probes=[{"use": "stability", "every": 100, "rows": 4, "answers": 0}])
    run = opened(plan, tmp_path)
    with pytest.raises(GateStopped, match="gate fail: min_acc is 0"):
        go(plan, run)
    record = gates.read_gate(run.layout, SECOND)
    assert record["verdict"] == "fail" and (record["ended"]["step"], record["ended"]["planned"]) == (2, 2)


def test_the_first_slice_is_decided_before_anything_else_is_scored(tmp_path):
    text = (
        "thresholds:\n  - {metric: accuracy, task: letter, at_least: 1.0, unit: share, first: true}\n"
        "  - {metric: success, at_least: 0.0, unit: share}\n"
    )
    plan = planned(tmp_path, text)
    run = opened(plan, tmp_path)
    with pytest.raises(GateStopped):
        go(plan, run)
    assert [p.name for p in (run.layout.aside(SECOND) / "evals").iterdir()] == ["letter"]
    assert [r["verdict"] for r in gates.read_gate(run.layout, SECOND)["results"]] == ["fail", "not measured"]


@pytest.mark.slow
def test_a_kill_while_a_slice_is_scored_changes_nothing(tmp_path, monkeypatch):
    """Slices of stage 2 are answered before and after it; killed after the answers to one and the score of the other."""
    others = slices.recipe(tmp_path, "words", "tests.fakes.slices:rephrased")
    own = {"slices": {"neighbourhood": ["tiny/word"], "retention": [others]}}
    text = (
        "thresholds: [{metric: locality, at_least: 0, unit: share}, {metric: drawdown, at_most: 100, unit: points}]\n"
    )
    plan = planned(tmp_path, text, own=own)
    straight = opened(plan, tmp_path / "straight")
    go(plan, straight)
    killed, run = [], opened(plan, tmp_path / "killed")
    for name, step, slice_ in (("_answer", evaluate._answer, "word"), ("_finish", evaluate._finish, "words")):

        def once(task, folder, *given, step=step, slice_=slice_, **named):
            made = step(task, folder, *given, **named)
            if task.name == slice_ and folder not in killed:
                killed.append(folder)
                raise Killed
            return made

        monkeypatch.setattr(evaluate, name, once)
    while True:
        try:
            go(plan, run)
            break
        except Killed:
            run = Run(run.layout.root)
    assert {("candidates" in p.parts, "word" in p.parts) for p in killed} == {(k, w) for k in (0, 1) for w in (0, 1)}
    for stage in ("01-letter", SECOND, THIRD):
        assert weights(run, stage) == weights(straight, stage)
    scores = [
        {str(p.relative_to(r.layout.root)): sha256_file(p) for p in r.layout.root.glob("evals/*/*/*.json*")}
        for r in (run, straight)
    ]
    assert scores[0] == scores[1] and any("words" in name for name in scores[0])
    results = [gates.read_gate(r.layout, SECOND)["results"] for r in (run, straight)]
    assert results[0] == results[1]
