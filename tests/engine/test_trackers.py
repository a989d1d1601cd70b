"""Trackers: TensorBoard through its own reader, the others through recorders in the place of accelerate's classes."""

import sys

import pytest

from mcit.core.errors import ConfigError
from mcit.engine import trackers
from mcit.engine.trackers import Tracking
from mcit.plan.plan import read_config

HEAD = ["after", "a", "b"]


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}, found


def test_tensorboard_has_both_axes_and_a_restart_takes_back_what_it_does_again(tmp_path):
    said = []
    given = {"folder": tmp_path, "run": "r-1", "say": said.append}
    first = Tracking(["tensorboard"], **given)
    first.about({"config": {"seed": 1}, "environment": {"versions.torch": "2"}})
    for step in range(1, 4):
        first.logged("01-a", 0, step, {"loss": 1.0 / step, "note": "text", "undefined": float("nan")})
    first.scores(HEAD, [["01-a", 50.0, None]], 3)
    for step in range(1, 5):
        first.logged("02-b", 3, step, {"loss": 10.0 + step})
    first.close()  # killed after step 4, whose newest checkpoint is step 2
    again = Tracking(["tensorboard"], **given)
    for step in range(3, 6):
        again.logged("02-b", 3, step, {"loss": 20.0 + step})
    again.close()
    assert said == []
    scalars, found = read(tmp_path / "tensorboard" / "run")
    assert scalars["loss"] == [
        (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 11.0), (5, 12.0), (6, 23.0), (7, 24.0), (8, 25.0),
    ]  # fmt: skip
    assert scalars["accuracy/a"] == [(3, 50.0)] and set(scalars) == {"loss", "accuracy/a"}
    assert "matrix/text_summary" in found.Tags()["tensors"]
    assert read(tmp_path / "tensorboard" / "02-b")[0]["loss"] == [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0), (5, 25.0)]
    assert [step for step, _ in read(tmp_path / "tensorboard" / "01-a")[0]["loss"]] == [1, 2, 3]


class Recorder:
    """In place of one of accelerate's trackers."""

    def __init__(self, *args, **kwargs):
        self.made, self.calls, self.tracker = (args, kwargs), [], self

    def start(self):
        self.calls.append(("start",))

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, *args, *kwargs.items()))


@pytest.mark.parametrize("name", ["WandB", "MLflow", "Trackio"])
def test_the_others_get_both_axes_config_and_matrix(name, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        f"accelerate.tracking.{name}Tracker", lambda *a, **k: made.append(Recorder(*a, **k)) or made[-1]
    )
    frame = type("Frame", (), {"DataFrame": staticmethod(lambda data, columns: (data, columns))})
    table = type("Module", (), {"Table": staticmethod(lambda dataframe: dataframe)})
    monkeypatch.setitem(sys.modules, "pandas", frame)
    monkeypatch.setitem(sys.modules, "trackio", table)
    said = []
    tracking = Tracking([name.lower()], folder=tmp_path, run="r-1", say=said.append)
    tracking.about({"config": {"stages[0].name": "a"}, "environment": {}})
    tracking.logged("02-b", 3, 1, {"loss": 0.5, "loss/l2": 0.25})
    tracking.scores(HEAD, [["base", 1.0, None], ["02-b", 50.0, None]], 4)
    tracking.close()
    (tracker,) = made
    assert said == [] and tracker.calls[0] == ("start",) and tracker.calls[-1] == ("finish",)
    assert tracker.main_process_only is False and "mcit" in tracker.made[0]
    flat = {
        key: (value, dict(rest)["step"]) for _, values, *rest in _calls(tracker, "log") for key, value in values.items()
    }
    assert flat["loss"] == (0.5, 4) and flat["02-b/loss"] == (0.5, 1 if name == "MLflow" else 4)
    accuracy = "accuracy.{}" if name == "MLflow" else "accuracy/{}"
    assert flat[accuracy.format("a")] == (50.0, 4) and accuracy.format("b") not in flat
    if name == "MLflow":  # a folder "loss" beside a file "loss" is what its store on disk cannot have
        assert flat["loss.l2"] == (0.25, 4) and flat["02-b/loss.l2"] == (0.25, 1)
        assert _calls(tracker, "store_init_configuration")[0][1] == {"config/stages_0_.name": "a"}
        assert (tmp_path / "mlflow" / "matrix.csv").read_text() == "after,a,b\nbase,1.00,–\n02-b,50.00,–\n"
    else:
        assert flat["02-b/step"] == (1, 4) and tracker.made[1]["name"] == "r-1" and tracker.made[1]["resume"] == "allow"
        assert _calls(tracker, "store_init_configuration")[0][1] == {
            "config": {"stages[0].name": "a"},
            "environment": {},
        }
    if name == "WandB":
        assert ("define_metric", "02-b/*", ("step_metric", "02-b/step")) in tracker.calls
        assert _calls(tracker, "log_table")[0][1:3] == ("matrix", ("columns", HEAD))
    if name == "Trackio":
        assert flat["matrix"][0][1] == HEAD


def _calls(tracker, name):
    return [call for call in tracker.calls if call[0] == name]


def test_one_that_fails_is_told_once_and_the_others_go_on(tmp_path, monkeypatch):
    class Failing(Recorder):
        def scalars(self, stage, step, of_run, values):
            raise ConnectionError("server is gone\nand more")

    good = Recorder()
    monkeypatch.setitem(trackers._KINDS, "wandb", lambda folder, run: Failing())
    monkeypatch.setitem(trackers._KINDS, "trackio", lambda folder, run: good)
    monkeypatch.setitem(trackers._KINDS, "mlflow", lambda folder, run: 1 / 0)
    said = []
    tracking = Tracking(["mlflow", "wandb", "trackio"], folder=tmp_path, run="r", say=said.append)
    for step in (1, 2):
        tracking.logged("01-a", 0, step, {"loss": 1.0})
    tracking.scores(HEAD, [], 2)
    tracking.close()
    assert said == [
        "note: tracker mlflow is left out from here on: ZeroDivisionError: division by zero",
        "note: tracker wandb is left out from here on: ConnectionError: server is gone",
    ]
    assert [call[0] for call in good.calls] == ["scalars", "scalars", "table", "finish"] and not tracking.on


def test_without_its_package_a_config_is_refused_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError) as told:
        read_config("tiny", ["track=[tensorboard]"])
    (problem,) = told.value.problems
    assert problem.where.endswith("track[0]") and "mcit[tensorboard]" in problem.fix
    said = []
    assert not Tracking(["tensorboard"], folder=tmp_path, run="r", say=said.append).on
    assert len(said) == 1 and "left out" in said[0]
