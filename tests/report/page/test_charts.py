"""Specifications of charts, and that Vega-Lite draws them."""

import xml.etree.ElementTree as ET

from mcit.report.page import charts
from mcit.report.page.words import Fall
from mcit.report.tables import full_report


def test_curves_hold_every_cell_with_its_interval(three) -> None:
    spec = charts.curves([full_report(three.root)])
    cells = {(v["task"], v["stage"]): v["accuracy"] for v in spec["data"]["values"]}
    assert cells == {("a", 1): 50, ("a", 2): 70, ("b", 2): 40, ("a", 3): 60, ("b", 3): 50, ("c", 3): 30}
    assert all(v["low"] <= v["accuracy"] <= v["high"] for v in spec["data"]["values"])


def test_several_runs_are_facets_and_nothing_scored_is_no_chart(three, fake_run) -> None:
    other = fake_run([["a"]], "other")
    assert charts.curves([full_report(other.root)]) is None
    spec = charts.curves([full_report(three.root), full_report(other.shares(1, "a", 3).root)])
    assert spec["facet"]["row"]["field"] == "run" and len({v["run"] for v in spec["data"]["values"]}) == 2


def test_accumulation_is_drawn_where_tasks_come_back(fake_run) -> None:
    """Tasks a, b, a, all scored each time: means over both; in one of three stages and in two."""
    run = fake_run([["a"], ["b"], ["a"]]).shares(1, "a", 4).shares(1, "b", 0).shares(2, "a", 2).shares(2, "b", 6)
    run.shares(3, "a", 8).shares(3, "b", 4)
    report = full_report(run.root)
    assert [v["accuracy"] for v in charts.accumulation(report)["data"]["values"]] == [20, 40, 60]
    points = {v["task"]: (v["frequency"], v["accuracy"]) for v in charts.frequency(report)["data"]["values"]}
    assert points == {"a": (2 / 3, 80), "b": (1 / 3, 40)}
    once = full_report(fake_run([["a"], ["b"]], "once").shares(1, "a", 4).root)
    assert charts.accumulation(once) is None and charts.frequency(once) is None


def test_forgetting_splits_wrong_answers() -> None:
    spec = charts.forgetting([Fall("a", 70, 10, 6, 5), Fall("b", 50, 50, 0, 0)])
    parts = [(v["task"], v["kind"], v["answers"]) for v in spec["data"]["values"][:2]]
    assert parts == [("a", "form", 5), ("a", "content", 1)]
    assert charts.forgetting([Fall("b", 50, 50, 0, 0)]) is None


def test_training_goes_on_over_stages_and_is_thinned_out() -> None:
    lines = [{"step": k + 1, "loss": 1.0, "penalty/l2": 0.1, "lr": 1e-3} for k in range(1000)]
    made = charts.training({"01-a": lines, "02-b": lines[:10]})
    assert set(made) == {"loss", "penalty/l2"}
    points = made["loss"]["data"]["values"]
    assert len(points) == 510 and points[-1]["step"] == 1010 and points[-1]["stage"] == "02-b"
    assert charts.training({}) == {}


def test_figures_are_drawn(three) -> None:
    made = charts.figures({"accuracy": charts.curves([full_report(three.root)])})
    assert made["accuracy.png"].startswith(b"\x89PNG")
    assert ET.fromstring(made["accuracy.svg"]).tag.endswith("svg") and "accuracy in %" in made["accuracy.svg"]


def test_drift_and_time_by_stage():
    """Seconds of a step are of training and of each probe; drift is what methods logged under that name, and no other."""
    costs = [
        {
            "stage": "a",
            "steps": 10,
            "seconds": 5.0,
            "logged": {"drift/up": 0.5, "drift/down": None, "x": 1.0},
            "drift": {},
        },
        {"stage": "b", "steps": None, "seconds": None, "logged": None, "drift": None},
    ]
    assert charts.drift(costs)["data"]["values"] == [{"stage": "a", "module": "up", "drift": 0.5}]
    adapted = [{**costs[0], "drift": {"model.layers.0.up": 0.1, "model.layers.1.up": 0.2}}, costs[1]]
    values = charts.drift(adapted)["data"]["values"]
    assert [(v["module"], v["drift"]) for v in values] == [("0.up", 0.1), ("1.up", 0.2)]  # one measure in one chart
    found = charts.time(costs, [{"stage": "a", "probe": "stability", "seconds": 2.0}])["data"]["values"]
    assert [(v["part"], v["seconds"]) for v in found] == [("training", 0.5), ("probe stability", 0.2)]
    assert charts.drift(costs[1:]) is None and charts.time(costs[1:], []) is None
