"""The memory report from a run's files."""

from mcit.report.slices import measure_text, read_slices
from mcit.report.tables import full_report, markdown


def test_stages_with_their_intervals(fake_run):
    """Stage 2: success 0.6, of ten earlier rows three are lost."""
    run = fake_run([["a"], ["b"]], slices=[None, {"neighbourhood": ["near"], "rephrased": [], "retention": ["a"]}])
    run.shares(1, "a", 8).shares(2, "a", 5).shares(2, "b", 6).shares(1, "near", 5).shares(2, "near", 5)
    first, second = read_slices(run.root, mode="strict")
    assert first["success"]["estimate"] == 0.8 and first["drawdown_points"] is None
    assert second["locality"]["estimate"] == 1.0 and round(second["drawdown_points"]["estimate"], 6) == 30
    text = markdown(full_report(run.root))
    assert "| 02-s2 | 0.600 (0.313 to 0.832) | 1.000 (0.722 to 1.000) | 30.00 (" in text
    assert "| 02-s2 | a | 80.00 | 50.00 | 30.00 (" in text and "Holm" in text
    assert measure_text(None, ".3f") == "–"


def test_no_section_for_one_stage_without_slices(fake_run):
    run = fake_run([["a"]]).shares(1, "a", 5)
    assert "Memory: target" not in markdown(full_report(run.root))
