"""Recognition and recall by hand."""

import pytest

from mcit.probes.formulas.recollection import (
    cue_length,
    is_power_of_ten,
    recognised,
    retention_steps,
    rouge_1,
    rouge_l,
)


def test_recognition():
    seen, foil = [1.0, 2.0, 3.0], [1.5, 2.0, 2.5]
    assert recognised(seen, foil) == [True, False, False]  # the tie is wrong: 1/3
    apart = [1.0, 2.5, 3.0]
    assert sum(recognised(apart, foil)) + sum(recognised(foil, apart)) == 3  # without ties: s becomes 1 - s
    with pytest.raises(ValueError):
        recognised([1.0], [])


def test_half_of_the_full_text_is_given_away():
    """10 words, the first five given, five others in place of the rest."""
    cue, rest, said = "a b c d e", " f g h i j", " p q r s t"
    assert rouge_1(cue + rest, cue + said) == 0.5 and rouge_1(rest, said) == rouge_l(rest, said) == 0
    assert cue_length(11) == 5 and cue_length(10) == 5


def test_rouge():
    """Common subsequence 'the cat sat' of 4 and 3 words; words in another order count for ROUGE-1 alone; no stemming."""
    assert rouge_l("The cat there sat", "the cat sat.") == pytest.approx(6 / 7)
    assert rouge_1("a b", "b a") == 1 and rouge_l("a b", "b a") == 0.5
    assert rouge_1("walked", "walking") == 0 and rouge_l("", "") == 0


def test_the_papers_points():
    steps = retention_steps()
    assert len(steps) == 30 and steps[:2] == [1, 2] and steps[9:12] == [10, 20, 30] and steps[-2:] == [10_000, 100_000]
    assert [s for s in range(1200) if is_power_of_ten(s)] == [1, 10, 100, 1000]
