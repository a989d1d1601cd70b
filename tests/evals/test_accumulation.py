"""Knowledge accumulation by hand."""

import pytest

from mcit.evals.accumulation import accumulated, area, residue, visits


def test_gains_losses_and_residue():
    found = visits([0.10, 0.25, 0.40], [0.60, 0.65, 0.70])
    assert found.gains == pytest.approx([0.50, 0.40, 0.30]) and found.losses == pytest.approx([0.35, 0.25])
    assert found.residue == pytest.approx([0, 0.15, 0.30])
    once = visits([0.2], [0.9])
    assert once.losses == [] and residue([found, once], 3) == pytest.approx(0.30)
    assert residue([found, visits([0.0, 0.05], [1.0, 1.0])], 2) == pytest.approx(0.10) and residue([once], 2) is None
    with pytest.raises(ValueError):
        visits([0.1], [])


def test_the_union_of_all_concepts():
    """30 rows at 0.2 and 10 at 1.0 are 0.4; a concept that was not scored leaves the point undefined."""
    rows = {"a": 30, "b": 10}
    assert accumulated({"a": 0.2, "b": 1.0}, rows) == pytest.approx(0.4)
    assert accumulated({"a": 0.2, "b": None}, rows) is None and accumulated({}, rows) is None


def test_area():
    assert area([0.2, 0.4, 0.6]) == pytest.approx(0.4) and area([0.2, None]) is None and area([]) is None


def test_what_was_not_measured_is_not_zero():
    found = visits([None, 0.3], [0.5, None])
    assert found.gains == [None, None] and found.losses == [pytest.approx(0.2)] and found.residue == [None, None]
