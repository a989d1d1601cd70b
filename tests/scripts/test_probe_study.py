"""Putting runs of the probe studies together."""

import json
import shutil

import pytest

from scripts.probe_study import (
    MARKS,
    fair,
    finished,
    gap_of,
    gap_table,
    gathered,
    main,
    memory_of,
    memory_table,
    summary,
)

SETTINGS = {"every": 1, "dense": 30, "later": 10, "rows": 32}


def stability(values):
    """A run in which one earlier task has these accuracies at steps 0, 1, … of stage 2."""
    low = min(values[1:])
    step = values.index(low, 1)
    gap = {"stage": 2, "task": "a", "drop": values[0] - low, "recovery": values[-1] - low, "step": step}
    metrics = {"acc": 0.5, "min_acc": low, "wc_acc": 0.4, "wf": {"10": 0.3}}
    lines = [
        {"stage": 2, "step": k, "values": {"tasks": {"a": {"accuracy": value, "loss": -value, "rows": 24}}}}
        for k, value in enumerate(values)
    ]
    return {
        "stability": {"gaps": [gap], "metrics": metrics, "settings": SETTINGS},
        "shares": [{"probe": "stability", "share": 0.1}, {"probe": "seen", "share": 1}],
        "lines": {"stability": [{"stage": 2, "step": 1, "left_out": "share"}, *lines]},
    }


def studied(hits, *, rows=10):
    entry = {"rows": rows, "recognised": hits, "exact": 0, "rouge_l": 0.2, "full_rouge_1": 0.6}
    line = {"step": 4, "stage": 1, "values": {"t": {**entry, "exposures": 1, "since": 0}}}
    later = {"step": 10, "stage": 2, "values": {"t": {**entry, "exposures": 3, "since": 10}}}
    return {"lines": {"memory": [line, {**line, "step": 0, "stage": 2}, later]}}


def test_summary():
    found = summary([0.0, 1.0])
    assert found["mean"] == 0.5 and found["interval"] == [0.0, 1.0] and found["n"] == 2


def test_gaps_over_runs():
    found = gap_of({0: stability([0.5, 0.3, 0.4]), 1: stability([0.5, 0.1, 0.3])})
    assert found["drop"]["mean"] == pytest.approx(0.3) and found["recovery"]["mean"] == pytest.approx(0.15)
    assert found["share_of_step_time"] == [[0.1], [0.1]] and len(found["metrics"]) == 2
    assert found["curves"][1] == {"stage 2, a": {0: 0.5, 1: 0.1, 2: 0.3}}


def test_noise_makes_no_gap_where_the_step_is_chosen_by_other_seeds():
    """Two flat curves whose only dips lie at different steps: each has a drop of .2 and, at the other's step, none."""
    runs = {0: stability([0.5, 0.3, 0.5, 0.5]), 1: stability([0.5, 0.5, 0.3, 0.5])}
    found = gap_of(runs)
    assert found["drop"]["mean"] == pytest.approx(0.2)
    assert found["fair"]["drop"]["mean"] == 0 and found["fair"]["recovery"]["mean"] == 0
    assert found["fair_loss"] == found["fair"]  # losses of these runs are accuracies below zero
    assert fair({0: {"a": {0: 0.5, 1: 0.1}}}) == {"drop": [], "recovery": []}


def test_gap_table():
    text = gap_table({"none": gap_of({0: stability([0.5, 0.3, 0.4])}), "ewc": gap_of({0: stability([0.5, 0.4, 0.5])})})
    assert (
        "| sequential | 1 | 0.200 (0.200 to 0.200) | 0.100 (0.100 to 0.100) | 1.0 (1.0 to 1.0) | – | – | – | – | 0.500 |"
        in text
    )
    assert "| `ewc` | stage 2, a | 0.50 | 0.40 | 0.50 | – | – | – | – | – | 0.50 |" in text
    assert "ρ = 1 in the first 30 steps of a stage, then 10, 24 rows a task" in text


def test_memories_over_seeds_have_the_interval_of_one_run():
    line, later = memory_of({0: studied(10), 1: studied(8)})
    assert line["recognised"]["share"] == 0.9 and line["texts"] == 10 and line["runs"] == 2
    assert line["recognised"]["interval"] == pytest.approx([0.596, 0.982], abs=1e-3) and line["rouge_l"] == 0.2
    assert line["recognised"]["range"] == [0.8, 1.0] and line["exact"]["interval"][0] == 0 and later["since"] == 10


def test_memory_table():
    text = memory_table({"strings": memory_of({0: studied(10), 1: studied(8)})})
    assert "| recognition | runs | 1 exposure | 10 steps |" in text
    assert "| strings | 2 | 0.900 (0.596 to 0.982) | 0.900 (0.596 to 0.982) |" in text
    assert "| strings | 2 | 0.000 (0.000 to 0.278); 0.20 |" in text


def test_finished_runs_are_gathered_into_a_page(tmp_path, monkeypatch, capsys):
    for name in ("memory-strings-s0-1a", "memory-strings-real-s0-1b", "memory-strings-s1-1c"):
        (tmp_path / "runs" / name / "report").mkdir(parents=True)
    (tmp_path / "runs" / "memory-strings-s0-1a" / "report" / "report.json").write_text("{}")
    assert finished(tmp_path, "memory", "strings", 0).name == "memory-strings-s0-1a"
    assert finished(tmp_path, "memory", "strings", 1) is None
    monkeypatch.setattr("scripts.probe_study.read_probes", lambda run: studied(9))
    page = tmp_path / "page.md"
    page.write_text("\n".join(["before", *MARKS["memory"], "after"]))
    results = tmp_path / "results"
    results.mkdir()
    gathered(tmp_path, results, "memory", [("strings", 0), ("strings", 1)], page=page)
    assert "| strings | 1 | 0.900" in page.read_text() and page.read_text().endswith("after")
    shutil.rmtree(tmp_path / "runs")  # what was measured is kept without the run
    gathered(tmp_path, results, "memory", [("strings", 0)], page=page)
    assert "| strings | 1 | 0.900" in page.read_text() and [f.name for f in results.iterdir()] == [
        "memory-strings-s0.json"
    ]
    assert json.loads((tmp_path / "memory.json").read_text())["strings"][0]["runs"] == 1


def test_what_is_finished_is_not_run_again_and_a_failure_is_told(tmp_path, monkeypatch, capsys):
    report = tmp_path / "runs" / "gap-ewc-s0-1a" / "report" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    called = []
    monkeypatch.setattr("scripts.probe_study.read_probes", lambda run: studied(9))
    monkeypatch.setattr("scripts.probe_study.run_side", lambda *args, **kw: called.append(args) or False)
    argv = ["probe_study.py", "gap", "--home", str(tmp_path), "--seeds", "0", "--methods", "ewc"]
    monkeypatch.setattr("sys.argv", argv)
    assert main() == 0 and not called
    monkeypatch.setattr("sys.argv", [*argv[:-1], "lwf"])
    assert main() == 1 and called == [(tmp_path, "gap", "lwf", 0)] and "failed, see" in capsys.readouterr().out


def test_runs_of_two_settings_in_one_folder_are_refused(tmp_path):
    for digest in ("1a", "1b"):
        (tmp_path / "runs" / f"gap-ewc-s0-{digest}" / "report").mkdir(parents=True)
        (tmp_path / "runs" / f"gap-ewc-s0-{digest}" / "report" / "report.json").write_text("{}")
    with pytest.raises(SystemExit, match="two settings"):
        finished(tmp_path, "gap", "ewc", 0)
