import csv
import io
import json

import pytest
from rich.console import Console

from mcit.core.stored import write_sealed
from mcit.report.forgetting import read_forgetting
from mcit.report.tables import compare, full_report, markdown, render_terminal, write_report
from mcit.runs.layout import RunLayout
from tests.fakes.run_dir import create, rejection


@pytest.fixture
def asked(fake_run):
    """Three stages; the second retains ``rest`` and forgets ``dog``; ``all`` was learned in the first."""
    run = fake_run([["all"], ["rest"], ["new"]])
    run.plan["stages"][1]["forget"] = run.plan["forget_tasks"] = ["dog"]
    create(run.root, run.plan)
    for after, task, right in [
        (0, "dog", 1), (1, "dog", 9), (2, "dog", 1), (3, "dog", 4),
        (1, "all", 8), (2, "all", 7), (3, "all", 7),
        (1, "rest", 8), (2, "rest", 9), (3, "rest", 6),
        (3, "new", 10),
    ]:  # fmt: skip
        run.shares(after, task, right)
    run.progress("01-s1")
    run.progress("02-s2")
    note = {"names": "live", "base_sha256": "0" * 64, "zero": ["layers.0.q"]}
    run.stage_file("02-s2", "adapter/mcit.json", note)
    return run.stage_file("02-s2", "adapter/adapter_config.json", {"target_modules": ["layers.1.q", "layers.1.k"]})


def test_entry_by_hand(asked):
    """dog 90 to 10: drop 80; retained 90: H = 2 * 90 * 80 / 170 = 84.7059; ``all`` lost 10; dog rose to 40 later: 30."""
    (entry,) = read_forgetting(asked.root, mode="strict")
    assert (entry["stage"], entry["task"]) == ("02-s2", "dog")
    assert [entry[k] for k in ("base", "before", "after", "drop")] == [10, 90, 10, 80]
    assert (
        entry["retained_before"] == 80
        and entry["retained"] == 90
        and entry["h_mean"] == pytest.approx(84.7059, abs=1e-4)
    )
    assert entry["elsewhere"] == {"all": 10, "rest": -10} and entry["most_lost_elsewhere"] == 10
    assert entry["later"] == {"03-s3": 40} and entry["resurgence"] == 30
    assert (entry["zero_pairs"], entry["pairs"]) == (1, 3)


def test_a_rejected_stage_is_no_stage_before_and_forgets_nothing(fake_run):
    """Stages 2 and 4 were rejected: dog 90 after stage 1 to 10 after stage 3, then 40 after stage 5."""
    run = fake_run([["all"], ["lost"], ["rest"], ["lost"], ["new"]])
    run.plan["stages"][2]["forget"] = run.plan["stages"][3]["forget"] = run.plan["forget_tasks"] = ["dog"]
    create(run.root, run.plan)
    for stage in (2, 4):
        write_sealed(RunLayout(run.root).gate(f"0{stage}-s{stage}"), rejection(f"0{stage}-s{stage}"))
    for after, task, right in [
        (1, "dog", 9),
        (3, "dog", 1),
        (5, "dog", 4),
        (1, "rest", 8),
        (3, "rest", 9),
        (1, "all", 8),
    ]:
        run.shares(after, task, right)
    (entry,) = read_forgetting(run.root, mode="strict")
    assert [entry[k] for k in ("before", "after", "drop", "retained_before")] == [90, 10, 80, 80]
    assert entry["later"] == {"05-s5": 40} and entry["resurgence"] == 30


def test_matrix_and_metrics_do_not_know_of_it(asked):
    report = full_report(asked.root)
    assert report["tasks"] == ["all", "rest", "new"] and report["metrics"]["mfn"] == pytest.approx((70 + 60 + 100) / 3)


def test_shown_in_every_format(asked):
    report = full_report(asked.root)
    page = markdown(report)
    assert "## Forgetting on request" in page and "1 of 3 LoRA pairs of 02-s2 are exactly 0." in page
    assert "| 02-s2, dog | 10.00 | 90.00 | 10.00 | 80.00 | 80.00 | 90.00 | 84.71 | 10.00 | 30.00 |" in page
    assert "| 03-s3 | dog (forgotten in 02-s2) | 40.00 |" in page
    paths = write_report(asked.root)
    (line,) = csv.DictReader(io.StringIO(paths["forget_csv"].read_text()))
    assert line["task"] == "dog" and line["h_mean"] == "84.71" and line["zero_pairs"] == "1"
    assert json.loads(paths["json"].read_text())["forget"] == report["forget"]
    table = render_terminal(report)[-1]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    assert table.title == "forgetting on request" and "…" not in console.export_text()
    assert "| H-mean, dog | 84.71 | 84.71 |" in compare([report, report])


def test_unmeasured_is_a_dash_and_no_stage_no_section(asked, fake_run):
    for path in (asked.root / "evals" / "after-01").rglob("*.json*"):
        path.unlink()
    (entry,) = read_forgetting(asked.root, mode="strict")
    assert entry["before"] is entry["drop"] is entry["h_mean"] is None and entry["elsewhere"] == {}
    assert entry["most_lost_elsewhere"] is None and "| 02-s2, dog | 10.00 | – | 10.00 | – |" in markdown(
        full_report(asked.root)
    )
    other = fake_run([["a"]], name="other").shares(1, "a", 5)
    report = full_report(other.root)
    assert report["forget"] == [] and "on request" not in markdown(report)
    assert "forget_csv" not in write_report(other.root) and len(render_terminal(report)) == 2
