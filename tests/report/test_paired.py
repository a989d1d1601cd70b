import pytest

from mcit.report.compare import comparison
from mcit.report.matrix import measure
from mcit.report.page.html import write_page
from mcit.report.paired import paired, paired_metrics, unlike
from mcit.report.tables import compare, full_report


def read(*runs):
    return [full_report(run.root) for run in runs], [measure(run.root) for run in runs]


def test_paired_differences(fake_run, tmp_path) -> None:
    """b is right on 3 more of the same ten questions: +30, with an interval; other questions have none."""
    a = fake_run([["t"], ["u"]], "a").shares(2, "t", 4).shares(2, "u", 5)
    b = fake_run([["t"], ["u"]], "b").shares(2, "t", 7).shares(2, "u", 3, n=5)
    lines = paired(*read(a, b))
    t, u = (line["runs"][1] for line in lines)
    assert t["difference"] == pytest.approx(30) and 0 <= t["span"][0] <= 30 <= t["span"][1]
    assert u["score"] == 60 and u["difference"] is None
    text = write_page([a.root, b.root], tmp_path / "page.html")[0].read_text()
    assert "+30.0" in text and "2 runs side by side" in text


def test_metrics_of_the_same_questions_are_paired(fake_run):
    """MFN (4 + 5) / 2 of ten against (7 + 5) / 2: 45 and 60, and the five unchanged answers add nothing to the spread."""
    a = fake_run([["t"], ["u"]], "a").shares(1, "t", 5).shares(2, "t", 4).shares(2, "u", 5)
    b = fake_run([["t"], ["u"]], "b").shares(1, "t", 5).shares(2, "t", 7).shares(2, "u", 5)
    (mfn,) = (line for line in paired_metrics(*read(a, b)) if line["metric"] == "mfn")
    assert mfn["scores"] == [45.0, 60.0] and mfn["difference"] == pytest.approx(15)
    low, high = mfn["span"]
    assert 0 <= low <= 15 <= high <= 30


def test_no_difference_of_metrics_over_other_tasks_or_questions(fake_run):
    a = fake_run([["t"]], "a").shares(1, "t", 5)
    for other in (fake_run([["u"]], "b").shares(1, "u", 5), fake_run([["t"]], "c").shares(1, "t", 5, n=8)):
        for line in paired_metrics(*read(a, other)):
            assert line["difference"] is None and line["span"] is None


def test_other_rules_and_other_tasks_are_said_wherever_runs_stand_side_by_side(fake_run, tmp_path):
    """The same answers: 50 by the strict rule, 100 by the fixed one."""
    answers = ["cat"] * 5 + ["the cat."] * 5
    a = fake_run([["t"]], "a").score(1, "t", answers)
    b = fake_run([["t"]], "b", mode="fixed").score(1, "t", answers)
    c = fake_run([["t"], ["u"]], "c").score(2, "t", answers).score(2, "u", answers)
    rules, tasks = "Scored by different rules (a strict, b fixed)", "The runs have different tasks"
    for other, sentence in ((b, rules), (c, tasks)):
        (found,) = unlike(read(a, other)[0])
        assert found.startswith(sentence) and found in comparison(a.root, other.root)["words"]
        assert found in compare(read(a, other)[0])
        assert sentence in write_page([a.root, other.root], tmp_path / "page.html")[0].read_text()
    assert unlike([full_report(run.root, mode="fixed") for run in (a, b)]) == []
