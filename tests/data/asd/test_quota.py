"""How many, and which."""

import pytest

from mcit.data.asd.quota import assign, quota

STYLES = ("yn", "short", "brief", "detail")


@pytest.mark.parametrize(
    "total, percent, each",
    [
        (1000, 20, 50),
        (1003, 20, 50),
        (1019, 20, 50),
        (1020, 20, 51),
        (320, 20, 16),
        (10, 0, 0),
        (19, 20, 0),
        (20, 20, 1),
    ],
)
def test_floor_of_n_times_x_over_400(total, percent, each):
    """1003 * 20 / 400 = 50.15 -> 50; 1020 * 20 / 400 = 51."""
    assert quota(total, percent) == each


def test_no_rounding_error():
    """4000 * 0.7 / 400 = 7 exactly; in floating point 0.7 / 400 * 4000 is 6.999…"""
    assert 4000 * (0.7 / 400) < 7 and quota(4000, 0.7) == 7
    assert quota(4000, 57.3) == 573


def test_disjoint_seeded_and_never_refilled():
    chosen = assign([1] * 40, STYLES, 5, seed=0, eligible=lambda i, style: style != "yn" or i < 3)
    assert sorted(chosen["yn"]) == [0, 1, 2] and all(len(chosen[s]) == 5 for s in STYLES[1:])
    everything = [i for rows in chosen.values() for i in rows]
    assert len(set(everything)) == 18
    again = assign([1] * 40, STYLES, 5, seed=0, eligible=lambda i, style: style != "yn" or i < 3)
    other = assign([1] * 40, STYLES, 5, seed=1, eligible=lambda i, style: style != "yn" or i < 3)
    assert chosen == again != other


def test_questions_as_unit():
    """Rows of 3 questions, 7 questions per style: two rows fit, a third would pass the quota."""
    chosen = assign([3] * 20, STYLES, 7, seed=0, eligible=lambda i, style: True)
    assert {style: len(rows) for style, rows in chosen.items()} == dict.fromkeys(STYLES, 2)
    mixed = assign([3] * 10 + [1] * 10, STYLES, 7, seed=0, eligible=lambda i, style: True)
    sizes = {style: sum(3 if i < 10 else 1 for i in rows) for style, rows in mixed.items()}
    assert max(sizes.values()) <= 7 and sizes["yn"] == 7
