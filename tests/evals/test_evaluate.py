"""Answers and scores of tasks: made once, kept, continued, scored again without a model."""

import contextlib
import copy
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import ConfigError, Interrupted, StateError
from mcit.core.files import read_json, remove_temporaries, sha256_file
from mcit.core.interfaces import Silent
from mcit.core.ranks import ONE
from mcit.core.schema import EvalConfig
from mcit.core.stored import write_sealed
from mcit.core.types import Progress, TaskSpec
from mcit.data.build import build
from mcit.data.encode import Encoder
from mcit.data.folder import DataFolder
from mcit.data.recipe import find_recipe, load_recipe
from mcit.evals import evaluate as module
from mcit.evals.evaluate import evaluate, needs_eval, needs_model, rescore
from mcit.evals.filters.base import Filter
from mcit.evals.predictions import read_predictions
from mcit.models.load import load_processor
from mcit.runs.run import Run
from scripts.inject.faultpoints import Fault, Killed, Operations
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.ranks import on_ranks
from tests.fakes.run_dir import create, plan_record

CONFIG = EvalConfig(batch=2, rows=5, max_new_tokens=2)


@pytest.fixture(scope="module")
def setting(cache):
    """Model, encoder and two tasks."""
    os.environ["MCIT_CACHE"] = str(cache)
    torch.set_num_threads(1)
    model = tiny_model()
    tasks = tuple(task_of(name) for name in ("tiny/letter", "tiny/word"))
    return SimpleNamespace(model=model, encoder=Encoder(load_processor(tiny_path())), tasks=tasks)


def task_of(recipe: str) -> TaskSpec:
    folder = DataFolder.open(build(load_recipe(find_recipe(recipe))))
    scoring = folder.eval
    return TaskSpec(
        name=folder.task,
        recipe=recipe,
        folder=folder.path,
        digest=folder.digest,
        rows=folder.counts,
        scorer=scoring.scorer,
        style=scoring.style,
        max_new_tokens=scoring.max_new_tokens,
    )


def go(setting, folder, *, tasks=None, config=CONFIG, lineage="L", model=..., reporter=None, **given):
    evaluate(
        setting.tasks if tasks is None else tasks,
        folder=folder,
        model=setting.model if model is ... else model,
        encoder=setting.encoder,
        config=config,
        device="cpu",
        lineage=lineage,
        reporter=reporter,
        **given,
    )


def needs(setting, folder, *, config=CONFIG, lineage="L", tasks=None) -> tuple[bool, bool]:
    given = {"folder": folder, "config": config, "lineage": lineage}
    wanted = setting.tasks if tasks is None else tasks
    return needs_eval(wanted, **given), needs_model(wanted, **given)


def stamp(folder) -> dict:
    return {
        p.relative_to(folder): (sha256_file(p), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def done(setting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evals") / "after-01"
    go(setting, folder)
    return folder


@pytest.fixture
def finished(done, tmp_path):
    """A copy of finished evaluations, free to be damaged."""
    shutil.copytree(done, tmp_path / "after-01")
    return tmp_path / "after-01"


def test_what_is_written(setting, done) -> None:
    assert needs(setting, done) == (False, False)
    names = {"generation.json", "predictions.jsonl", "rows.json", "score.json"}
    assert {p.name for p in (done / "letter").iterdir()} == names
    score = read_json(done / "letter" / "score.json")
    assert score["n"] == 5
    assert score["lineage"] == "L"
    assert score["filters"] == []
    assert score["style"] == "letter"
    assert score["scorer"]["name"] == "choice"
    assert read_json(done / "word" / "score.json")["scorer"]["name"] == "exact"
    first = [row.id for row in DataFolder.open(setting.tasks[0].folder).rows("test")[:5]]
    assert read_json(done / "letter" / "rows.json")["id"] == first


def test_a_finished_evaluation_is_left_alone(setting, finished) -> None:
    before = stamp(finished)
    go(setting, finished, model=None)  # no model: it must not be needed
    assert stamp(finished) == before


@pytest.mark.parametrize(
    "change",
    [
        {"lineage": "other"},
        {"config": EvalConfig(batch=2, rows=4, max_new_tokens=2)},
        {"config": EvalConfig(batch=3, rows=5, max_new_tokens=2)},
        {"config": EvalConfig(batch=2, rows=5, max_new_tokens=3)},
        {"config": EvalConfig(batch=2, rows=5, max_new_tokens=2, filters=["strip"])},
    ],
)
def test_answers_depend_on_weights_rows_and_generation(setting, done, change) -> None:
    assert needs(setting, done, **change) == (True, True)


FORWARD = CONFIG.model_copy(update={"options": "forward"})


@pytest.fixture(scope="module")
def chosen(setting, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chosen") / "after-01"
    go(setting, folder, config=FORWARD)
    return folder


def test_options_are_chosen_where_scorer_and_rows_allow_it(setting, done, chosen) -> None:
    """The letters of one task; the words of the other are written, as they are without the setting."""
    lines = {task: read_predictions(chosen / task) for task in ("letter", "word")}
    assert {line["text"] for line in lines["letter"]} <= set("ABC")
    assert {line.get("options") for line in lines["letter"]} == {3}
    assert lines["word"] == read_predictions(done / "word")
    made = {task: read_json(chosen / task / "generation.json") for task in lines}
    assert {task: made[task]["chosen"] for task in lines} == {"letter": 5, "word": 0}
    assert read_json(chosen / "letter" / "score.json")["answered"] == {"chosen": 5, "written": 0}
    assert read_json(chosen / "word" / "score.json")["answered"] == {"chosen": 0, "written": 5}
    assert needs(setting, chosen, config=FORWARD) == (False, False)


def test_rows_that_are_written_for_an_option_are_counted(setting, tmp_path, monkeypatch) -> None:
    """In the score and in the line of the evaluation."""
    monkeypatch.setattr(module, "chooser", lambda settings: lambda row: ("A", "<image> B"))
    lines: list[str] = []
    monkeypatch.setattr(Silent, "line", lambda self, text: lines.append(text))
    go(setting, tmp_path / "after-01", config=FORWARD)
    score = read_json(tmp_path / "after-01" / "letter" / "score.json")
    assert score["answered"] == {"chosen": 0, "written": 5, "refused": 5}
    assert {line["refused_option"] for line in read_predictions(tmp_path / "after-01" / "letter")} == {"<image> B"}
    assert any("5 written because an option cannot be an answer" in line for line in lines)


def test_without_the_setting_nothing_says_a_word_of_it(setting, done) -> None:
    """So answers of before it was there are still those of this config."""
    record, score = (read_json(done / "letter" / name) for name in ("generation.json", "score.json"))
    assert "options" not in record["settings"] and "chosen" not in record and "answered" not in score
    assert not any("options" in line for line in read_predictions(done / "letter"))
    assert module._settings(setting.tasks[0], CONFIG, "L", None) == record["settings"]


def test_written_and_chosen_answers_do_not_mix(setting, done, chosen, tmp_path) -> None:
    """A call that was stopped between two batches, gone on with under the other setting, and under its own."""
    assert needs(setting, done, config=FORWARD) == needs(setting, chosen) == (True, True)
    whole = {CONFIG.options: done, FORWARD.options: chosen}
    for begun, other in ((CONFIG, FORWARD), (FORWARD, CONFIG)):
        for config in (begun, other):
            folder = tmp_path / begun.options / config.options
            with pytest.raises(Interrupted):
                go(setting, folder, tasks=setting.tasks[:1], config=begun, stop=lambda: True)
            assert (folder / "letter" / "predictions.part.jsonl").is_file()
            go(setting, folder, tasks=setting.tasks[:1], config=config)
            for name in ("predictions.jsonl", "score.json"):
                assert sha256_file(folder / "letter" / name) == sha256_file(whole[config.options] / "letter" / name)


def test_who_chooses_is_part_of_what_answers_depend_on(setting, chosen) -> None:
    assert needs(setting, chosen, config=FORWARD, tasks=[replace(setting.tasks[0], scorer="exact")]) == (True, False)
    for change in ({"scorer": "contains"}, {"style": "text"}):
        assert needs(setting, chosen, config=FORWARD, tasks=[replace(setting.tasks[0], **change)]) == (True, True)


def test_what_acts_while_an_answer_is_written_is_refused(setting, tmp_path) -> None:
    with pytest.raises(ConfigError, match="filter 'guard' acts while an answer is written"):
        go(setting, tmp_path, config=FORWARD.model_copy(update={"filters": ["guard"]}))
    assert not list(tmp_path.iterdir())


def test_the_scorer_mode_of_the_matrix_changes_nothing(setting, done) -> None:
    assert needs(setting, done, config=EvalConfig(batch=2, rows=5, max_new_tokens=2, mode="fixed")) == (False, False)


def test_another_scorer_needs_no_model(setting, finished) -> None:
    tasks = (replace(setting.tasks[0], scorer="exact"), setting.tasks[1])
    assert needs(setting, finished, tasks=tasks) == (True, False)
    kept = sha256_file(finished / "letter" / "predictions.jsonl")
    go(setting, finished, tasks=tasks, model=None)
    assert read_json(finished / "letter" / "score.json")["scorer"]["name"] == "exact"
    assert sha256_file(finished / "letter" / "predictions.jsonl") == kept
    assert needs(setting, finished, tasks=tasks) == (False, False)


class Knowing(Filter):
    """Reads what a method left."""

    reads = ("guard",)


def test_answers_depend_on_the_state_that_a_filter_reads(setting, tmp_path) -> None:
    config, found = EvalConfig(filters=["tests.evals.test_evaluate:Knowing"]), []
    for text in (None, "one", "two"):
        if text:
            (tmp_path / "state.json").write_text(text)
        state = {"guard": tmp_path, "other": tmp_path / "none"} if text else None
        found.append(module._settings(setting.tasks[0], config, "L", state)["filters"][0]["state"])
    assert found[0] == {} and found[1].keys() == found[2].keys() == {"guard"} and found[1] != found[2]


def test_vllm_is_one_process_and_started_once(monkeypatch, tmp_path) -> None:
    from mcit.evals import vllm

    config, started = EvalConfig(backend="vllm"), []
    with contextlib.ExitStack() as stack:
        with pytest.raises(ConfigError, match="this run has 2"):
            module.Vllm(stack, tmp_path, config, SimpleNamespace(size=lambda: 2))
        served = module.Vllm(stack, tmp_path, config, ONE)

        @contextlib.contextmanager
        def serving(model, encoder, *, config, home):
            started.append(home)
            yield SimpleNamespace(for_task=lambda limit: ("answers", limit))

        monkeypatch.setattr(vllm, "serving", serving)
        monkeypatch.setattr(vllm, "compare", lambda *_, **__: {"version": "1", "different": 0, "compared": 2})
        for limit in (3, 4):
            given = {"settings": {"task": "t", "max_new_tokens": limit}, "out": tmp_path, "reporter": Silent()}
            assert served.answerer([], module.Own(None, None, "cpu"), **given) == ("answers", limit)
    assert started == [tmp_path]


def test_a_score_says_what_made_its_answers(finished, monkeypatch) -> None:
    made = {"backend": "vllm", "version": "1", "compared": 2, "different": 1, "ids": ["x"]}
    path, recorded = finished / "letter", module.recorded_settings
    write_sealed(path / "backend.json", made)
    monkeypatch.setattr(module, "recorded_settings", lambda home: {**recorded(home), "backend": "vllm"})
    module._score("letter", path, Silent(), scorer="choice", style="letter")
    assert read_json(path / "score.json")["backend"] == made


def test_a_new_version_of_a_scorer_scores_again(setting, finished, monkeypatch) -> None:
    from mcit.evals.scorers.choice import Choice

    monkeypatch.setattr(Choice, "version", 99)
    assert needs(setting, finished) == (True, False)
    go(setting, finished, model=None)
    assert read_json(finished / "letter" / "score.json")["scorer"]["version"] == 99


def test_another_model_gives_other_answers(setting, finished) -> None:
    kept = sha256_file(finished / "letter" / "predictions.jsonl")
    setting_b = SimpleNamespace(**{**vars(setting), "model": tiny_model(seed=1)})
    go(setting_b, finished, lineage="other")
    assert sha256_file(finished / "letter" / "predictions.jsonl") != kept
    assert read_json(finished / "letter" / "score.json")["lineage"] == "other"


def test_own_limit_of_the_task_holds_without_one_in_the_config(setting, tmp_path) -> None:
    go(setting, tmp_path, tasks=setting.tasks[:1], config=EvalConfig(batch=8, rows=1))
    assert read_json(tmp_path / "letter" / "generation.json")["settings"]["max_new_tokens"] == 4


def test_progress_counts_rows_and_names_no_stage_unless_told(setting, tmp_path) -> None:
    seen = []
    reporter = SimpleNamespace(line=lambda text: None, progress=seen.append)
    go(setting, tmp_path, tasks=setting.tasks[:1], config=EvalConfig(batch=8, rows=2), reporter=reporter)
    assert {(p.stage, p.stages, p.phase, p.name) for p in seen} == {(0, 0, "eval", setting.tasks[0].name)}
    assert (seen[-1].done, seen[-1].total) == (2, 2)
    seen.clear()
    evaluate(
        setting.tasks[:1],
        folder=tmp_path / "told",
        model=setting.model,
        encoder=setting.encoder,
        config=EvalConfig(batch=8, rows=2),
        device="cpu",
        lineage="L",
        reporter=reporter,
        progress=Progress(3, 4, "stage", "eval", 0, 0),
    )
    assert {(p.stage, p.stages, p.name, p.done) for p in seen} == {(3, 4, setting.tasks[0].name, 2)}


def test_a_task_without_test_rows_is_passed_over(setting, tmp_path) -> None:
    lines = []
    task = replace(setting.tasks[0], rows={"train": 3, "test": 0})
    reporter = SimpleNamespace(line=lines.append, progress=lambda p: None)
    go(setting, tmp_path, tasks=[task], model=None, reporter=reporter)
    assert lines == ["letter: has no test rows, nothing to score"]
    assert needs(setting, tmp_path, tasks=[task]) == (False, False)


def test_killed_at_every_write_gives_equal_bytes(setting, done, tmp_path, monkeypatch) -> None:
    """A kill at each durable operation of one task's evaluation, then the same call: every file as undisturbed."""
    task = setting.tasks[:1]
    whole = {name: digest for name, (digest, _) in stamp(done / "letter").items()}

    def die(*_):
        raise Killed

    kills = 0
    for n in range(1, 60):
        folder = tmp_path / str(n)
        try:
            with Operations(folder, Fault(n), kinds={"create", "rename", "unlink"}, kill=die):
                go(setting, folder, tasks=task)
            break
        except Killed:
            kills += 1
        assert needs(setting, folder, tasks=task)[0] or n > 12
        remove_temporaries(folder)  # as the next start of a run does
        go(setting, folder, tasks=task)
        assert {name: digest for name, (digest, _) in stamp(folder / "letter").items()} == whole
    assert kills >= 13


def run_folder(finished):
    """A run folder around finished evaluations."""
    root = finished.parent / "run"
    shutil.copytree(finished, root / "evals" / "after-01")
    create(root, plan_with("choice"))
    return root


def plan_with(scorer):
    plan = plan_record([["letter", "word"]])
    plan["scorers"]["letter"] = {"scorer": scorer, "style": "letter"}
    return plan


def test_rescore_gives_the_same_files(finished) -> None:
    root = run_folder(finished)
    before = {name: digest for name, (digest, _) in stamp(root).items() if name.name != "ledger.jsonl"}
    (root / "evals" / "after-01" / "word" / "score.json").unlink()
    assert rescore(root) == ["after-01/letter", "after-01/word"]
    assert {name: digest for name, (digest, _) in stamp(root).items() if name.name != "ledger.jsonl"} == before
    assert Run(root).ledger.events("eval")[-1]["rescored"] == ["after-01/letter", "after-01/word"]


def test_rescore_follows_the_plan(finished, setting) -> None:
    root = run_folder(finished)
    create(root, plan_with("contains"))
    rescore(root)
    assert read_json(root / "evals" / "after-01" / "letter" / "score.json")["scorer"]["name"] == "contains"


def test_rescore_knows_the_base_and_every_planned_stage_and_no_more(finished) -> None:
    """One stage is planned: base and after-01 are scored; after-02 is of no stage of this run and stays as it is."""
    root = run_folder(finished)
    for name in ("base", "after-02"):
        shutil.copytree(root / "evals" / "after-01", root / "evals" / name)
        (root / "evals" / name / "word" / "score.json").unlink()
    assert rescore(root) == ["base/letter", "base/word", "after-01/letter", "after-01/word"]
    assert (root / "evals" / "base" / "word" / "score.json").is_file()
    assert not (root / "evals" / "after-02" / "word" / "score.json").exists()


def test_rescore_refuses_edited_answers(finished) -> None:
    root = run_folder(finished)
    path = root / "evals" / "after-01" / "letter" / "predictions.jsonl"
    path.write_text(path.read_text().replace('"truncated": true', '"truncated": false', 1))
    with pytest.raises(StateError, match="checksum differs") as caught:
        rescore(root)
    assert caught.value.where == str(path)


def test_torch_is_not_needed_to_decide(done, setting, monkeypatch) -> None:
    """`generate`, the only file with torch, is imported when answers are made and not before."""
    assert not hasattr(module, "torch")
    assert not hasattr(module, "predict")


# ---- several ranks ---------------------------------------------------------------------------------------------------
def on_two_ranks(setting, folder, *, size=2, stop_after=None):
    """The same evaluation shared by ranks, each with a model of its own; rank 0 is asked to stop after some batches."""
    models = [copy.deepcopy(setting.model) for _ in range(size)]
    encoders = [copy.deepcopy(setting.encoder) for _ in range(size)]

    def work(ranks):
        asked = []

        def stop():
            asked.append(1)
            return stop_after is not None and ranks.rank() == 0 and len(asked) >= stop_after

        evaluate(
            setting.tasks,
            folder=folder,
            model=models[ranks.rank()],
            encoder=encoders[ranks.rank()],
            config=CONFIG,
            device="cpu",
            lineage="L",
            stop=stop,
            ranks=ranks,
        )
        return ranks.collectives

    return on_ranks(size, work)


def contents(folder) -> dict:
    return {p.relative_to(folder): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_the_batches_and_the_bytes_are_those_of_one_process(setting, done, tmp_path, size) -> None:
    """5 rows in batches of 2 are 3 batches: two ranks take 2 and 1, of four one has nothing to do."""
    found = on_two_ranks(setting, tmp_path / "after-01", size=size)
    assert len(set(found)) == 1 and isinstance(found[0], int), found
    assert contents(tmp_path / "after-01") == contents(done)


def test_a_stop_on_one_rank_stops_all_and_one_process_goes_on_to_the_same_bytes(setting, done, tmp_path) -> None:
    folder = tmp_path / "after-01"
    found = on_two_ranks(setting, folder, stop_after=1)
    assert [type(error) for error in found] == [Interrupted] * 2
    assert {error.what for error in found} == {"stopped after 4 of 5 answers; they are kept"}
    go(setting, folder)
    assert contents(folder) == contents(done)


@pytest.mark.parametrize("name", ["score.json", "rows.json", "generation.json", "predictions.jsonl"])
def test_damaged_answers_and_scores_are_told_and_made_again(finished, setting, name) -> None:
    """A letter changed in each file of a task: one line says which, and then every byte is as before."""
    before = {name: digest for name, (digest, _) in stamp(finished).items()}
    path = finished / "word" / name
    path.write_text(path.read_text().replace("a", "b", 1))
    assert needs(setting, finished)[0]
    assert needs(setting, finished)[1] == (name in ("generation.json", "predictions.jsonl"))
    lines = []
    go(setting, finished, reporter=SimpleNamespace(line=lines.append, progress=lambda p: None))
    assert {name: digest for name, (digest, _) in stamp(finished).items()} == before
    told = [line for line in lines if str(path) in line]
    assert len(told) == 1 and told[0].endswith(("the answers are made again", "the answers are scored again"))
    assert len(lines) == 1 + (name in ("score.json", "rows.json")), "and the score of this task, no other one"
