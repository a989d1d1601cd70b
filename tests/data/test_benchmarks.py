"""Every shipped benchmark recipe against a folder of the published layout, and what it says against its neighbours."""

import re

import pytest

from mcit.core import lookup
from mcit.core.config import load_yaml
from mcit.core.paths import shipped
from mcit.data.build import build, check
from mcit.data.folder import DataFolder
from mcit.data.recipe import find_recipe, load_recipe
from mcit.evals.style import STYLES
from mcit.plan.plan import read_config
from tests.fakes import benchmarks

TASKS = list(benchmarks.COIN)
WRITERS = {
    "coin": lambda root: benchmarks.coin(root, TASKS),
    "coin-refined": lambda root: benchmarks.coin(root, TASKS),
    "coin-asd": lambda root: benchmarks.coin_asd(root, TASKS),
    "UCIT": benchmarks.ucit,
    "MLLM-CL": benchmarks.mllm_cl,
    "llava": benchmarks.llava_mix,
}
NAMES = sorted(
    str(path.relative_to(shipped("data_recipes")).with_suffix(""))
    for path in shipped("data_recipes").rglob("*.yaml")
    if load_yaml(path).get("data") in WRITERS
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One folder with every benchmark below it."""
    home = tmp_path_factory.mktemp("benchmarks")
    for name, write in WRITERS.items():
        write(home / name)
    return home


@pytest.fixture
def recipe(data, monkeypatch):
    """Load a recipe whose data lies in the module's folder."""
    monkeypatch.setenv("MCIT_DATA", str(data))
    return lambda name: load_recipe(find_recipe(name))


def test_which_benchmarks_are_shipped():
    folders = {name.split("/")[0] for name in NAMES}
    assert folders == {"coin", "coin-refined", "ucit", "mllm-cl", "llava"} and len(NAMES) == 8 * 7 + 6 + 9 + 1


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_the_published_layout(name, recipe):
    loaded = recipe(name)
    report = check(loaded)
    assert report.ok and not report.bad, [str(p) for p in (*report.fatal, *report.bad)]
    # a handful of rows in place of the benchmark's: that, and nothing else, is said
    expected = set(loaded.config.expect)
    assert {w.where for w in report.warnings if "the recipe expects" in w.what} == expected
    assert not [w for w in report.warnings if "asks with" in w.what], report.warnings
    assert lookup.missing("evals.scorers", loaded.config.eval.scorer, where="") is None
    assert loaded.config.eval.style in STYLES and loaded.config.image.pad
    assert report.counts["train"] and (
        report.counts["test"] or name in ("mllm-cl/math", "mllm-cl/app", "llava/mix665k")
    )


def rows(recipe, name, tmp_path, split="test"):
    return DataFolder.open(build(recipe(name), data_dir=tmp_path)).rows(split)


def test_harness_cues_are_put_at_test_where_the_authors_put_them(recipe, tmp_path):
    letter = rows(recipe, "coin/scienceqa", tmp_path)[0].question
    assert letter == f"<image>\n{benchmarks.OPTIONS}\n{benchmarks.LETTER}"
    assert rows(recipe, "mllm-cl/med", tmp_path)[0].question.endswith(
        "slice 0? Answer the question with a single word (or phrase)."
    )
    yes_no, choice, _ = rows(recipe, "mllm-cl/fin", tmp_path)
    assert yes_no.question.endswith("rise? Only answer with yes or no directly.")
    assert choice.question.endswith("B. June 1 Answer the question with a single letter choice.")
    assert rows(recipe, "coin/scienceqa", tmp_path, "train")[0].question.count(benchmarks.LETTER) == 1


def test_what_scorers_need_is_in_the_rows(recipe, tmp_path):
    assert rows(recipe, "coin/textvqa", tmp_path)[0].meta["answers"] == ["acme"] * 10
    box = rows(recipe, "coin/grounding", tmp_path)[0]
    assert box.meta["box"] == [0.1, 0.2, 0.5, 0.6] and box.meta["size"] == [40, 30] and box.style == "box"
    assert rows(recipe, "mllm-cl/ocr", tmp_path)[0].meta["answer_type"] == "Scene Text-centric VQA"
    assert rows(recipe, "ucit/flickr30k", tmp_path)[0].meta["answers"] == ["A dog runs.", "Another caption."]
    assert rows(recipe, "mllm-cl/sci", tmp_path)[0].images[0].startswith("images/AI2D_")


def test_rows_of_a_mix_share_ids(recipe, tmp_path):
    found = rows(recipe, "llava/mix665k", tmp_path, "train")
    assert [r.id for r in found] == ["0#1", "0#2", "wgByO4Y_0#3"]
    assert [len(r.turns) for r in found] == [4, 2, 2] and found[1].turns[0].text == "<image>\nDescribe it."


@pytest.mark.parametrize("task", [task.lower() for task in TASKS])
def test_shares_of_asd_differ_in_their_share_alone(task):
    texts = {x: find_recipe(f"coin/{task}-asd{x}").read_text() for x in (10, 20, 40, 60, 80)}
    assert len({re.sub(rf"(asd|_x|X = ){x}\b", r"\1X", text) for x, text in texts.items()}) == 1
    original, refined = load_yaml(find_recipe(f"coin/{task}")), load_yaml(find_recipe(f"coin-refined/{task}"))
    for key in ("sources", "eval", "task"):
        assert original[key] == refined[key]


ORDERS = {
    "coin": [f"coin/{task.lower()}" for task in TASKS],
    "coin-refined": [f"coin-refined/{task.lower()}" for task in TASKS],
    "sefe-coin": [f"coin/{task.lower()}-asd20" for task in TASKS],
    "ucit": [f"ucit/{t}" for t in ("imagenet-r", "arxivqa", "vizwiz-caption", "iconqa", "clevr-math", "flickr30k")],
    "mllm-dcl": [f"mllm-cl/{t}" for t in ("rs", "med", "ad", "sci", "fin")],
    "mllm-acl": [f"mllm-cl/{t}" for t in ("ocr", "math", "vp", "app")],
}


@pytest.mark.parametrize("name", ORDERS)
def test_sequences_are_in_the_papers_order(name):
    config, _ = read_config(name)
    assert [stage.recipe for stage in config.stages] == ORDERS[name]
    assert {stage.optim.clip for stage in config.stages} == {None}
    assert {stage.adapter.carry for stage in config.stages} == {"merge" if name == "sefe-coin" else "keep"}


def test_hyper_parameters_of_sequences():
    """MCITlib's train configs; CoIN's and SEFE's scripts."""
    stages = {name: read_config(name)[0].stages for name in ORDERS}
    assert {(s.adapter.rank, s.adapter.alpha, s.optim.batch, s.optim.lr) for s in stages["coin"]} == {
        (128, 256, 128, 2e-4)
    }
    assert {(s.adapter.rank, s.optim.batch, s.optim.lr, s.epochs) for s in stages["ucit"]} == {(16, 64, 2e-4, 1)}
    assert [(s.epochs, s.optim.lr, s.adapter.rank) for s in stages["mllm-dcl"]] == [
        (e, 2e-5, 32) for e in (1, 3, 1, 2, 1)
    ]
    assert [(s.epochs, s.optim.lr) for s in stages["mllm-acl"]] == [(3, 5e-5), (1, 2e-4), (1, 2e-4), (3, 2e-4)]
