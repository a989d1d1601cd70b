"""The Python interface; its notebook is run cell by cell and is what most tests look at."""

import contextlib
import importlib
import inspect
import io
import json
import os
from pathlib import Path

import pytest
import yaml

import mcit
from mcit import api
from mcit.core.errors import ConfigError, DataError, Interrupted, StateError
from mcit.core.types import Plan
from mcit.export.export import Export

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "first-run.ipynb"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory, cache):
    """What the cells of the notebook leave behind, what each prints, and the folder it ran in."""
    home = tmp_path_factory.mktemp("notebook")
    before, os.environ["MCIT_CACHE"] = os.environ.get("MCIT_CACHE"), str(cache)
    names, printed = {}, []
    try:
        with contextlib.chdir(home):
            for cell in json.loads(NOTEBOOK.read_text())["cells"]:
                if cell["cell_type"] == "code":
                    with contextlib.redirect_stdout(io.StringIO()) as out:
                        exec("".join(cell["source"]), names)
                    printed.append(out.getvalue())
    finally:
        os.environ.pop("MCIT_CACHE") if before is None else os.environ.update(MCIT_CACHE=before)
    return names, printed, home


def test_the_notebook_runs_and_holds_no_output(notebook):
    names, printed, home = notebook
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    assert "01-letter" in printed[0] and "Quote MFN" in printed[1] and "logits differ" in printed[4]
    assert "eval.row: unknown key" in printed[5] and "did you mean 'rows'" in printed[5]
    assert (home / "report.html").read_text().startswith("<!doctype html>")
    assert (home / "my-model" / "model.safetensors").is_file()


def test_everything_has_its_type(notebook):
    names, _, _ = notebook
    report = names["report"]
    assert isinstance(names["plan"], Plan) and isinstance(names["export"], Export) and isinstance(report, mcit.Report)
    assert report.tasks == ("letter", "yesno", "word") and report.stages[0] == "01-letter"
    assert report.matrix[0][2] is not None and report.matrix[0][1] is None  # "word" after stage 1 was asked for
    assert set(report.metrics) == set(report.content["metrics"]) - {"average"}
    assert str(report).splitlines() == [report.headline, report.quote, report.cost]
    assert (Path(mcit.__file__).parent / "py.typed").is_file()


def test_again_and_rescored_it_is_the_same_run(notebook):
    names, _, home = notebook
    with contextlib.chdir(home):
        again = mcit.run("tiny", overrides=names["quick"], runs_dir="runs")
        assert again == names["report"] == mcit.evaluate(again, rescore=True) == mcit.report(again.run)


def test_a_mapping_is_a_config_and_a_stop_is_interrupted_and_continued(tmp_path):
    config = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    config |= {"stages": config["stages"][:1], "eval": {"tasks": "none"}, "name": "mapped"}
    with pytest.raises(Interrupted):
        mcit.run(config, runs_dir=tmp_path, stop=lambda: True)
    (root,) = tmp_path.glob("mapped-*")
    assert yaml.safe_load((root / "config.yaml").read_text()) == config
    lines = []

    class Told:
        def line(self, text):
            lines.append(text)

        def progress(self, progress):
            pass

    report = mcit.run(config, runs_dir=tmp_path, reporter=Told())
    assert report.run == root and report.headline == "Nothing has been scored yet."
    assert any("1 of 1" in line for line in lines)
    assert '"resumed"' in (root / "ledger.jsonl").read_text()


def test_what_is_wrong_is_told_as_by_the_commands(tmp_path, monkeypatch):
    wrong = [
        (lambda: mcit.plan(3), ConfigError, "int is no config"),
        (lambda: mcit.plan("tinny"), ConfigError, "did you mean 'tiny'"),
        (lambda: mcit.plan({"name": "x"}), ConfigError, "stages"),
        (lambda: mcit.report(tmp_path), StateError, "not a run folder"),
        (lambda: mcit.report(tmp_path, mode="loose"), ConfigError, "loose"),
        (lambda: mcit.evaluate(tmp_path / "none"), StateError, "no such folder"),
        (lambda: mcit.export(tmp_path, stage=1, kind="onnx"), ConfigError, "onnx"),
    ]
    for call, kind, what in wrong:
        with pytest.raises(kind) as told:
            call()
        assert what in str(told.value), what
        assert all(p.where and p.what and p.fix for p in told.value.problems), str(told.value)
    monkeypatch.setattr("mcit.models.load.pending", lambda base: "a base of 3 GB")
    with pytest.raises(DataError, match="downloaded first: a base of 3 GB"):
        mcit.plan("tiny")


def test_verbs_that_are_packages_are_called_as_their_functions():
    for name in ("plan", "run", "evaluate", "export", "report"):
        assert callable(getattr(mcit, name)) and inspect.isfunction(getattr(api, name))
    importlib.import_module("mcit.plan.plan")  # the attribute is the package from now on
    assert callable(mcit.plan)
    with pytest.raises(AttributeError):
        mcit.trains  # noqa: B018
