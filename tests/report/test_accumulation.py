"""Visits of tasks that come back, from score files."""

import pytest

from mcit.report.accumulation import accumulation
from mcit.report.matrix import measure
from mcit.report.tables import full_report, markdown


def test_visits_of_a_task(fake_run):
    """Task a in stages 1 and 3 with 0 before, 60 after, 30 before the second visit, 80 after; b once; KA over both."""
    run = fake_run([["a"], ["b"], ["a"]]).shares(0, "a", 0).shares(1, "a", 6).shares(2, "a", 3).shares(3, "a", 8)
    for after, right in ((0, 1), (1, 2), (2, 7), (3, 6)):
        run.shares(after, "b", right)
    found = accumulation(measure(run.root), "strict")
    assert found["curve"] == pytest.approx([40, 50, 70]) and found["area"] == pytest.approx(160 / 3)
    assert found["tasks"]["a"] == {
        "visits": 2, "frequency": 2 / 3, "since": 0, "last": 80, "gains": [60, 50], "losses": [30], "residue": [0, 30],
    }  # fmt: skip
    assert found["tasks"]["b"]["since"] == 1 and found["tasks"]["b"]["gains"] == [50]
    assert found["residue"] == [0, 30]
    text = markdown(full_report(run.root))
    assert "After the last stage 70.00" in text and "| a | 2 | 0.667 | 0 | 80.00 | 55.00 | 30.00 | 30.00 |" in text


def test_without_the_base_the_first_gain_is_unknown(fake_run):
    run = fake_run([["a"], ["a"]]).shares(1, "a", 6)
    found = accumulation(measure(run.root), "strict")
    assert found["tasks"]["a"]["gains"] == [None, None] and found["curve"] == [60, None] and found["area"] is None
    assert found["tasks"]["a"]["last"] == 60 and found["residue"] == [None, None]


def test_no_section_where_no_task_comes_back(fake_run):
    run = fake_run([["a"], ["b"]]).shares(1, "a", 6)
    assert accumulation(measure(run.root), "strict") is None
    assert "Knowledge accumulation" not in markdown(full_report(run.root))
