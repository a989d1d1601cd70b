"""`mcit run` end to end on the tiny sequence, in processes of their own where a signal or a restart is the point."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mcit.cli.main import main
from mcit.core.files import sha256_file, sha256_tree
from tests.fakes.rows import llava

DIARIES = {"lock", "ledger.jsonl", "train.log"}
TRACK = ["--set", "track=[tensorboard]"]
FAST = ["--set", "defaults.epochs=1", "--set", "eval.rows=8"]


def kept(root):
    """What must be equal between an interrupted and an undisturbed run."""
    out = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        parts = set(relative.parts)
        if path.is_file() and ({"adapter", "methods", "weights"} & parts or path.name == "predictions.jsonl"):
            out[str(relative)] = sha256_file(path)
    return out


def start(runs, *extra, cache):
    command = [sys.executable, "-m", "mcit", "run", "tiny", "--runs-dir", str(runs), *FAST, *TRACK, *extra]
    env = {**os.environ, "MCIT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """One undisturbed run."""
    runs = tmp_path_factory.mktemp("runs")
    process = start(runs, cache=cache)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    (root,) = runs.glob("tiny-*")
    return root, out


def test_it_ends_with_matrix_metrics_and_paths(finished):
    root, out = finished
    for word in ("letter", "yesno", "word", "MFT", "MFN", "MAA", "BWT", "orgetting", "report.md", f"run: {root}"):
        assert word in out, word
    log = (root / "train.log").read_text()
    for word in (" loading torch", " stage 1 of 3: letter", " stage 3 of 3 word train", " after-03/word: strict"):
        assert word in log, word
    assert len(re.findall("projector +trained", log)) == 1  # alike in all stages: shown once
    report = json.loads((root / "report" / "report.json").read_text())
    assert set(report) >= {"tasks", "base", "constant", "matrix", "format_validity", "metrics"}
    assert all(min(stage["drift"].values()) > 0 for stage in report["costs"])
    assert 'id="chart-drift"' in (root / "report" / "report.html").read_text()
    assert [len(row) for row in report["matrix"]] == [1, 2, 3] or all(len(row) == 3 for row in report["matrix"])


def test_notes_of_the_plan_are_told_by_run_too(tmp_path, capsys):
    (tmp_path / "rows.json").write_text(json.dumps([llava("a", "q1"), llava("b", "q2"), {"id": "c"}]))
    source = "sources: [{kind: llava, path: rows.json}]"
    (tmp_path / "some.yaml").write_text(f"name: some\ntask: some\nallow_bad: 1\n{source}\n")
    stage = {"recipe": str(tmp_path / "some.yaml")}
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"name": "some", "base": {"family": "tiny", "dtype": "fp32"}, "stages": [stage]}))
    assert main(["run", str(config), "--runs-dir", str(tmp_path / "runs")]) == 0
    told = capsys.readouterr().err
    assert "1 bad row(s) dropped" in told and "so the task is never scored" in told


def test_other_data_are_not_scored_into_a_run(tmp_path, capsys):
    """Before, eval scored whatever the recipe held by then and put it into the run's matrix."""
    (tmp_path / "train.json").write_text(json.dumps([llava("a", "q1"), llava("b", "q2")]))
    (tmp_path / "test.json").write_text(json.dumps([llava("c", "q3", "red")]))
    sources = "[{kind: llava, path: train.json}, {kind: llava, path: test.json, split: test}]"
    (tmp_path / "some.yaml").write_text(f"name: some\ntask: some\nsources: {sources}\n")
    stage = {"recipe": str(tmp_path / "some.yaml")}
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"name": "some", "base": {"family": "tiny", "dtype": "fp32"}, "stages": [stage]}))
    assert main(["run", str(config), "--runs-dir", str(tmp_path / "runs")]) == 0
    (root,) = (tmp_path / "runs").iterdir()
    score = root / "evals" / "after-01" / "some" / "score.json"
    before = score.read_bytes()
    (tmp_path / "test.json").write_text(json.dumps([llava("c", "q3", "blue")]))
    capsys.readouterr()
    assert main(["eval", str(root), "--after", "1", "--task", "some"]) == 5 and score.read_bytes() == before
    assert "changed since the run began: recipe" in capsys.readouterr().err
    assert main(["resume", str(root), "--accept-changes"]) == 0
    assert main(["eval", str(root), "--after", "1", "--task", "some"]) == 0 and score.read_bytes() != before


def test_tensorboards_own_reader_finds_every_scalar(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root, _ = finished
    home, before, found = root / "tracking" / "tensorboard", 0, {}
    for folder in ("run", "01-letter", "02-yesno", "03-word"):
        found[folder] = EventAccumulator(str(home / folder), size_guidance={"scalars": 0}).Reload()
    points = {
        f: {tag: {e.step: e.value for e in a.Scalars(tag)} for tag in a.Tags()["scalars"]} for f, a in found.items()
    }
    for stage in ("01-letter", "02-yesno", "03-word"):
        lines = [json.loads(line) for line in (root / "stages" / stage / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            for name, value in line.items():
                if name != "step":
                    for folder, step in ((stage, line["step"]), ("run", before + line["step"])):
                        assert points[folder][name][step] == pytest.approx(value, rel=1e-6), (folder, name, step)
        before += lines[-1]["step"]
    assert set(points["run"]["accuracy/letter"]) == {0, *(before * k // 3 for k in (1, 2, 3))}
    texts = found["run"].Tags()["tensors"]
    assert {"matrix/text_summary", "config/text_summary", "environment/text_summary"} <= set(texts)
    last = found["run"].Tensors("matrix/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert last.startswith("| after | letter | yesno | word |") and "| 03-word |" in last


def test_run_again_changes_nothing_and_prints_the_same(finished, capsys):
    root, out = finished
    before = {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in DIARIES}
    assert main(["run", "tiny", "--runs-dir", str(root.parent), *FAST, *TRACK]) == 0
    after = {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in DIARIES}
    assert before == after
    assert capsys.readouterr().out.split() == out.split()


def test_sigterm_checkpoints_exits_75_and_the_same_command_ends_in_the_same_bytes(finished, tmp_path, cache):
    process = start(tmp_path, "--profile", cache=cache)  # which changes no byte of what is trained
    for line in process.stderr:
        if "train" in line:
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "run the same command again" in err
    again = start(tmp_path, "--profile", cache=cache)
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    (root,) = tmp_path.glob("tiny-*")
    assert kept(root) == kept(finished[0])
    events = [json.loads(line)["event"] for line in (root / "ledger.jsonl").read_text().splitlines()]
    assert "interrupted" in events and "resumed" in events
    report = json.loads((root / "report" / "report.json").read_text())
    profile, costs = report["profile"], report["costs"]
    assert not (finished[0] / "profile.json").exists()
    assert profile["commands"] == 2 and [s["stage"] for s in profile["stages"]][:3] == ["start", "base", "01-letter"]
    assert profile["tokens"] == sum(cost["tokens"] for cost in costs)
    spent = profile["parts"]
    for part in ("start-up", "preparing", "data", "vision", "language forward", "backward", "optimiser", "checkpoint"):
        assert spent[part] > 0, part
    assert spent["evaluation"] > 0 and 0 < profile["utilisation"] < 1 and spent["rest"] < profile["seconds"] / 10


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4.0, 5.5, 7.0])
def test_sigkill_at_some_moment_ends_in_the_same_bytes(finished, tmp_path, cache, seconds):
    for wait in (seconds, seconds + 1):
        process = start(tmp_path, cache=cache)
        time.sleep(wait)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()
    process = start(tmp_path, cache=cache)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    (root,) = tmp_path.glob("tiny-*")
    assert kept(root) == kept(finished[0])


def test_resume_from_the_folder_alone_and_eval_rescore(finished, capsys):
    root, _ = finished
    assert main(["resume", str(root), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["run"] == str(root)
    before = kept(root)
    assert main(["eval", str(root), "--rescore", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["matrix"] == report["matrix"]
    assert kept(root) == before


def test_eval_of_a_task_that_was_not_seen_yet(finished, capsys, monkeypatch):
    root, _ = finished
    assert main(["eval", str(root), "--after", "1", "--task", "word", "--json"]) == 0
    capsys.readouterr()
    assert (root / "evals" / "after-01" / "word" / "score.json").is_file()
    shown = []
    with monkeypatch.context() as patch:  # on a terminal: the view, the matrix, an end
        names = ("line", "doing", "progress", "watch", "close")
        view = SimpleNamespace(**{name: lambda *given, name=name: shown.append(name) for name in names})
        patch.setattr("mcit.cli.common.reporter", lambda: view)
        shutil.rmtree(root / "evals" / "after-01" / "word")
        assert main(["eval", str(root), "--after", "1", "--task", "word", "--json"]) == 0
    assert shown[0] == "doing" and {"watch", "progress"} < set(shown) and shown[-1] == "close"
    capsys.readouterr()
    assert main(["eval", str(root), "--after", "9"]) == 2
    assert main(["eval", str(root), "--task", "wrod"]) == 2
    assert "did you mean 'word'" in capsys.readouterr().err


def test_a_changed_version_or_recipe_is_refused_by_name_and_can_be_accepted(finished, capsys, monkeypatch):
    import mcit.cli.run
    import mcit.plan.record

    root, _ = finished
    here, record = mcit.cli.run.environment(), mcit.plan.record.plan_json
    old = {**here, "versions": {**here["versions"], "peft": "0.1.0"}}
    with monkeypatch.context() as patch:
        patch.setattr(mcit.cli.run, "environment", lambda: old)
        assert main(["run", "tiny", "--runs-dir", str(root.parent), *FAST]) == 5
    assert "peft" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(
            mcit.plan.record,
            "plan_json",
            lambda plan: {**record(plan), "recipes": {**record(plan)["recipes"], "tiny/word": "0"}},
        )
        assert main(["run", "tiny", "--runs-dir", str(root.parent), *FAST]) == 5
    assert "tiny/word" in capsys.readouterr().err


def test_a_changed_config_of_an_unfinished_run_names_the_keys(tmp_path, cache, capsys):
    process = start(tmp_path, cache=cache)
    for line in process.stderr:
        if "train" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=120)
    assert main(["run", "tiny", "--runs-dir", str(tmp_path), *FAST, "--set", "seed=9"]) == 5
    err = capsys.readouterr().err
    assert "seed" in err and "1" in err and "9" in err and "--new" in err
    assert len(list(tmp_path.glob("tiny-*"))) == 1


def test_an_edited_stage_file_is_named_by_its_checksum(finished, capsys):
    root, _ = finished
    path = root / "stages" / "01-letter" / "adapter" / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    try:
        assert main(["run", "tiny", "--runs-dir", str(root.parent), *FAST]) == 5
        err = capsys.readouterr().err
        assert "adapter_model.safetensors" in err and "checksum" in err
    finally:
        path.write_bytes(data)


def test_a_runs_folder_that_cannot_be(tmp_path, capsys):
    target = tmp_path / "file"
    target.write_text("")
    assert main(["run", "tiny", "--runs-dir", str(target / "x")]) == 3
    assert str(target) in capsys.readouterr().err


def test_own_answers_given_as_answers_made_elsewhere_score_the_same(finished, tmp_path, capsys):
    root, _ = finished
    own = root / "evals" / "after-03" / "word"
    lines = [json.loads(line) for line in (own / "predictions.jsonl").read_text().splitlines()]
    answers = tmp_path / "theirs.jsonl"
    answers.write_text("\n".join(json.dumps({"question_id": line["id"], "text": line["text"]}) for line in lines))
    assert main(["eval", str(root), "--predictions", str(answers), "--task", "word", "--json"]) == 0
    found, score = json.loads(capsys.readouterr().out), json.loads((own / "score.json").read_text())
    assert {k: found[k] for k in ("n", "strict", "fixed")} == {k: score[k] for k in ("n", "strict", "fixed")}
    answers.write_text(answers.read_text().split("\n", 1)[1])
    assert main(["eval", str(root), "--predictions", str(answers), "--task", "word"]) != 0
    assert f"has no answer for: {lines[0]['id']}" in capsys.readouterr().err
    assert main(["eval", str(root), "--predictions", str(answers), "--task", "word", "--rescore"]) != 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--extend", "x", "--new"], "exclude each other"),
        (["--extend", "x", "--from", "y"], "exclude each other"),
        (["--stage", "1"], "goes with --from"),
        (["--extend", "nothing"], "is no run directory"),
        (["--from", "nothing", "--stage", "1"], "is no run directory"),
    ],
)
def test_options_of_extending_that_cannot_be(tmp_path, capsys, options, text):
    assert main(["run", "tiny", "--runs-dir", str(tmp_path), *options]) in (2, 5)
    assert text in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_config_with_one_more_stage_extends_the_finished_run_and_says_so(finished, tmp_path, capsys):
    """Two stages of the three, then the whole config, then another order from there."""
    text = (Path(__file__).parents[2] / "configs" / "tiny.yaml").read_text()
    word, runs = "  - {recipe: tiny/word}\n", str(tmp_path / "runs")
    (tmp_path / "two.yaml").write_text(text.replace(word, ""))
    (tmp_path / "other.yaml").write_text(text.replace(word, word.replace("}", ", name: again}")))
    assert main(["run", str(tmp_path / "two.yaml"), "--runs-dir", runs, *FAST]) == 0
    capsys.readouterr()
    assert main(["run", "tiny", "--runs-dir", runs, *FAST]) == 0
    (root,) = (tmp_path / "runs").glob("tiny-*")
    assert "this run of 2 stages is extended by 03-word" in capsys.readouterr().err and kept(root) == kept(finished[0])
    assert main(["run", str(tmp_path / "other.yaml"), "--runs-dir", runs, "--from", str(root), *FAST]) == 0
    assert f"stages 01-letter, 02-yesno are shared with {root}" in capsys.readouterr().err
    (branch,) = set((tmp_path / "runs").glob("tiny-*")) - {root}
    for run in (root, branch):
        assert main(["resume", str(run), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["stages"][:2] == ["01-letter", "02-yesno"]


def test_the_page_takes_a_tenth_of_a_runs_time_at_most(tmp_path, monkeypatch):
    """Writing takes 2 s on this clock: the next one is due 18 s after it. A page that fails is said and stops nothing."""
    from mcit.cli.run import Page
    from mcit.core.errors import StateError
    from mcit.runs.layout import RunLayout

    now, written, said = [0.0], [], []

    def write(runs, target):
        written.append(now[0])
        now[0] += 2.0
        if len(written) == 2:
            raise StateError("gone", where="x")

    monkeypatch.setattr("mcit.report.page.html.write_page", write)
    page = Page(RunLayout(tmp_path), said.append, clock=lambda: now[0])
    for now[0] in (0.0, 5.0, 19.9, 20.0, 30.0):
        page.refresh()
    assert written == [0.0, 20.0] and "was not written" in said[0]
    page.write()
    assert written[-1] == 30.0


def test_chat_says_what_the_scored_answer_was_and_keeps_the_dialogue(finished, capsys):
    from mcit.data.build import build
    from mcit.data.folder import DataFolder
    from mcit.data.recipe import find_recipe, load_recipe

    root, _ = finished
    rows = DataFolder.open(build(load_recipe(find_recipe("tiny/letter")))).rows("test")
    asked = rows[0].question.replace("<image>", "").strip()
    image = Path(rows[0].root) / rows[0].images[0]
    settings = json.loads((root / "evals" / "base" / "letter" / "generation.json").read_text())["settings"]
    limit = str(settings["max_new_tokens"])
    given = ["--image", str(image), "--max-new-tokens", limit, "--ask", asked, "--ask", "Again?", "--json"]
    for stage, folder in ((0, "base"), (3, "after-03")):
        assert main(["chat", str(root), "--stage", str(stage), *given]) == 0
        first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        lines = (root / "evals" / folder / "letter" / "predictions.jsonl").read_text().splitlines()
        scored = json.loads(lines[0])
        assert scored["id"] == rows[0].id and first["text"] == scored["text"]
        assert second["question"] == "Again?" and isinstance(second["text"], str)
    assert main(["chat", str(root), "--stage", "9"]) == 2
    assert main(["chat", str(root), "--image", str(root / "none.png"), "--ask", "x"]) == 4
    assert "no such picture" in capsys.readouterr().err


def test_a_memory_goes_on_over_calls_and_belongs_to_one_stage(finished, tmp_path, capsys):
    root, _ = finished

    def ask(stage, *questions, more=()):
        asked = [part for question in questions for part in ("--ask", question)]
        given = ["--memory", str(tmp_path / "m"), "--max-new-tokens", "3", "--json", *more]
        code = main(["chat", str(root), "--stage", str(stage), *asked, *given])
        out = capsys.readouterr().out
        return json.loads(out) if code else [json.loads(line)["text"] for line in out.splitlines()]

    before = sha256_tree(root)
    first = ask(1, "What is red?", "And blue?") + ask(1, "Again, what is red?")
    refused = ask(2, "What is red?")
    assert "its vectors are of the encoder" in refused["problems"][0]["what"]
    last = ask(2, "What is red?", more=["--reembed"])
    lines = [json.loads(line) for path in (tmp_path / "m").glob("entries-*.jsonl") for line in open(path)]
    assert [line["turn"] for line in lines] == [0, 1, 2, 3] and [line["answer"] for line in lines] == first + last
    assert lines[0]["recalled"] == 3, "the answer of stage 1 was shown to stage 2"
    assert sha256_tree(root) == before, "a memory is outside of the run"


def test_any_model_on_a_recipe_scores_as_in_a_run(finished, tmp_path, monkeypatch, capsys):
    root, _ = finished
    monkeypatch.chdir(tmp_path)
    given = ["--recipe", "tiny/letter", "--set", "base.dtype=fp32", "--set", "eval.rows=8", "--set", "eval.batch=8"]
    assert main(["eval", "--model", "tiny", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    of_run = json.loads((root / "evals" / "base" / "letter" / "score.json").read_text())
    assert [score["strict"] for score in found["scores"]] == [of_run["strict"]]
    answers = Path(found["out"]) / "letter" / "predictions.jsonl"
    assert answers.read_bytes() == (root / "evals" / "base" / "letter" / "predictions.jsonl").read_bytes()
    monkeypatch.setattr("mcit.train.standalone.load_run_base", lambda *a, **k: 1 / 0)  # scored already: no weights
    assert main(["eval", "--model", "tiny", *given]) == 0
    assert "letter: strict" in capsys.readouterr().out
