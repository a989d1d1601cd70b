"""vLLM as a backend, by a stand-in for its package: what is handed over, what comes back, what is compared and refused."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from mcit.core import optional
from mcit.core.errors import ConfigError, StateError
from mcit.core.files import read_json
from mcit.core.records import Backend
from mcit.core.schema import AdapterConfig, EvalConfig, VllmConfig
from mcit.core.stored import read_sealed
from mcit.data.encode import Encoder
from mcit.evals.evaluate import evaluate, needs_eval
from mcit.evals.filters.base import Filter
from mcit.evals.vllm import check_filters, serving
from mcit.models import adapters
from mcit.models.load import load_processor
from tests.evals.test_evaluate import task_of
from tests.fakes import vllm as fake
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.run_dir import json_lines

CONFIG = EvalConfig(batch=2, rows=5, max_new_tokens=3)


@pytest.fixture(scope="module")
def setting(cache):
    os.environ["MCIT_CACHE"] = str(cache)
    torch.set_num_threads(1)
    tasks = tuple(task_of(name) for name in ("tiny/letter", "tiny/word"))
    return SimpleNamespace(model=tiny_model(), encoder=Encoder(load_processor(tiny_path())), tasks=tasks)


@pytest.fixture(autouse=True)
def package(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(fake.LLM, "started", [])
    return fake.LLM


class Plain(Filter):
    pass


class Editing(Filter):
    def logits(self, step, scores_BV, ctx):
        return scores_BV


class Said:
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def progress(self, progress):
        pass


def go(setting, folder, *, reporter=None, lineage="L", **changes):
    config = CONFIG.model_copy(update=changes)
    given = {"model": setting.model, "encoder": setting.encoder, "device": "cpu", "reporter": reporter}
    evaluate(setting.tasks, folder=folder, config=config, lineage=lineage, **given)
    return config


def answers(folder, task):
    return [(row["text"], row["tokens"], row["truncated"]) for row in json_lines(folder / task / "predictions.jsonl")]


def test_answers_are_those_of_the_own_backend(setting, package, tmp_path):
    """The same model on both sides: equal answers, equal scores; one engine for both tasks, its weights removed."""
    go(setting, tmp_path / "own")
    said = Said()
    config = go(setting, tmp_path / "vllm", backend="vllm", vllm=VllmConfig(compare=3, max_length=900), reporter=said)
    for task in ("letter", "word"):
        assert answers(tmp_path / "vllm", task) == answers(tmp_path / "own", task)
        own, theirs = (read_json(tmp_path / way / task / "score.json") for way in ("own", "vllm"))
        assert own["strict"] == theirs["strict"] and "backend" not in own
        assert theirs["backend"] == {"backend": "vllm", "version": "0.0-fake", "compared": 3, "different": 0, "ids": []}
    assert [(e["dtype"], e["max_model_len"], e["seed"]) for e in package.started] == [("float32", 900, 0)]
    assert not list(tmp_path.rglob("*.tmp"))
    assert sum("differ in 0 of 3 rows" in line for line in said.lines) == 2
    given = {"folder": tmp_path / "vllm", "config": config, "lineage": "L"}
    assert not needs_eval(setting.tasks, **given)
    assert needs_eval(setting.tasks, **{**given, "config": CONFIG})  # answers of one backend are not the other's


def test_differences_are_counted_and_named(setting, package, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "wrong", {0, 2})  # of the three that are compared first
    go(setting, tmp_path, backend="vllm", vllm=VllmConfig(compare=3))
    record = read_sealed(tmp_path / "letter" / "backend.json", Backend)
    rows = {row["id"] for row in json_lines(tmp_path / "letter" / "predictions.jsonl")}
    assert record["different"] == 2 and set(record["ids"]) <= rows
    assert read_json(tmp_path / "letter" / "score.json")["backend"] == record
    assert read_json(tmp_path / "word" / "backend.json")["different"] == 0


def test_a_prompt_that_vllm_expands_otherwise_stops_the_evaluation(setting, package, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "expand", 1)
    with pytest.raises(StateError, match="vLLM expands the prompt to"):
        go(setting, tmp_path, backend="vllm")
    assert not list(tmp_path.rglob("predictions.jsonl")) and not list(tmp_path.rglob("*.tmp"))


def test_filters_of_scores_and_several_processes_are_refused(setting, tmp_path):
    with pytest.raises(ConfigError, match="edits the scores"):
        check_filters([Plain(), Editing()])
    check_filters([Plain()])
    go(setting, tmp_path, backend="vllm", filters=["strip"])
    two = SimpleNamespace(size=lambda: 2, rank=lambda: 0)
    given = {"model": setting.model, "encoder": setting.encoder, "device": "cpu", "ranks": two}
    with pytest.raises(ConfigError, match="one process"):
        evaluate(
            setting.tasks, folder=tmp_path, config=CONFIG.model_copy(update={"backend": "vllm"}), lineage="L", **given
        )


def test_a_model_that_vllm_does_not_take_is_a_message(setting, package, tmp_path, monkeypatch):
    def refuse(self, **kwargs):
        raise ValueError("no kernel for heads of 8")

    monkeypatch.setattr(package, "__init__", refuse)
    with pytest.raises(ConfigError, match="no kernel for heads of 8"):
        go(setting, tmp_path, backend="vllm")
    assert not list(tmp_path.rglob("*.tmp"))


def test_adapters_that_are_not_merged_are_refused(package, tmp_path):
    model = tiny_model()
    adapters.add_lora(model, AdapterConfig(rank=2, alpha=4), seed=0)
    with pytest.raises(ConfigError, match="not merged"), serving(model, None, config=VllmConfig(), home=tmp_path):
        pass


def test_without_the_package_the_extra_is_named(setting, tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(optional, "import_module", absent)
    with (
        pytest.raises(ConfigError) as error,
        serving(setting.model, setting.encoder, config=VllmConfig(), home=tmp_path),
    ):
        pass
    assert "mcit[vllm]" in error.value.fix and error.value.where == "eval.backend: vllm"
    assert list(tmp_path.iterdir()) == []
