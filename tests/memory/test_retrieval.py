import pytest

from mcit.memory.retrieval import precision_at, recall_at


def test_the_card_s_example():
    """Relevant {a, b, c, d}, ranking a, x, b, y, z, c."""
    ranking, relevant = list("axbyzc"), set("abcd")
    assert precision_at(ranking, relevant, 5) == 0.4 and recall_at(ranking, relevant, 5) == 0.5
    assert recall_at(ranking, relevant, 6) == 0.75


def test_a_short_ranking_and_what_is_not_defined():
    assert precision_at(["a"], {"a"}, 5) == 0.2
    for wrong in (lambda: precision_at(["a"], {"a"}, 0), lambda: recall_at(["a"], set(), 5)):
        with pytest.raises(ValueError):
            wrong()
