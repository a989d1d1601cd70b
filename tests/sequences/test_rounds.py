"""Rounds over recipes."""

from mcit.sequences.rounds import Rounds


def made(seed, **settings):
    return [stage["recipe"] for stage in Rounds(Rounds.Config(recipes=["a", "b", "c", "d"], **settings)).stages(seed)]


def test_listed_order():
    assert made(3, rounds=2, shuffle=False) == ["a", "b", "c", "d"] * 2


def test_every_round_has_every_recipe_in_an_order_of_seed_and_round():
    first = made(3, rounds=6)
    rounds = [tuple(first[k : k + 4]) for k in range(0, 24, 4)]
    assert all(sorted(r) == ["a", "b", "c", "d"] for r in rounds) and len(set(rounds)) > 2
    assert made(3, rounds=6) == first and made(4, rounds=6) != first
