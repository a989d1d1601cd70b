"""Oracles of generation-time forgetting: trie, soft penalty, phrases in finished texts."""

import math

import pytest
import torch

from mcit.evals.guarding import Restriction, Trie, soft_penalty, surface_forms

WORDS = ["", "red", "penguin", "emperor", "bird", "auk", "the", "big"]


def encode(text):
    return [WORDS.index(word) for word in text.lower().split()]


def decode(ids):
    return " ".join(WORDS[k] for k in ids)


def restriction(*phrases, **changes):
    """One-hot embeddings, but an auk is nearly a penguin."""
    table = torch.eye(len(WORDS))
    table[WORDS.index("auk")] = (
        0.85 * table[WORDS.index("penguin")] + math.sqrt(1 - 0.85**2) * table[WORDS.index("auk")]
    )
    given = {"hard": 1e9, "delta": 0.7, "kappa": 10.0, "infinite": False, "window": 1, **changes}
    return Restriction(phrases, encode=encode, decode=decode, embeddings=table, **given)


def test_only_the_last_token_of_a_begun_phrase_is_blocked():
    trie = Trie([[5, 6, 7]])
    assert trie.completing([5, 6]) == [7] and trie.completing([1, 5, 6]) == [7]
    assert trie.completing([5, 9]) == trie.completing([]) == trie.completing([5]) == trie.completing([5, 6, 7]) == []
    assert Trie([[4], [4, 5], [5, 6]]).completing([4, 5]) == [4, 6] and Trie([]).completing([1]) == []


def test_soft_penalty():
    assert soft_penalty(0.85, delta=0.7, kappa=10) == pytest.approx(-5.0)
    assert soft_penalty(0.69, delta=0.7, kappa=10) == 0.0
    assert soft_penalty(0.5, delta=0.5, kappa=1, infinite=True) == float("-inf")


def test_scores_of_tokens_that_complete_a_phrase():
    rule = restriction("emperor penguin", kappa=0.0)
    scores = rule.scores(torch.zeros(2, 8), [[6, 3], [6, 7]])
    assert scores[0, 2] == -1e9 and scores[0, [0, 1, 3, 4, 5]].eq(0).all() and scores[1].eq(0).all()


def test_what_ends_like_a_phrase_in_meaning_costs_once():
    rule = restriction("penguin", window=0)
    assert rule.likeness("the auk") == pytest.approx(0.85, abs=1e-6) and rule.likeness("the bird") == 0.0
    scores = rule.scores(torch.zeros(3, 8), [[6, 5], [5, 6], [6, 4]])
    assert float(scores[0, 0]) == pytest.approx(-5.0, abs=1e-5), "the word has just become auk"
    assert float(scores[1, 0]) == 0.0 and float(scores[2, 0]) == 0.0


def test_finished_texts_and_forms_of_a_phrase():
    rule = restriction("emperor penguin")
    assert rule.says("An Emperor  Penguin!") and not rule.says("emperors and penguins") and not rule.says("")
    asked = []
    surface_forms("red", lambda text: asked.append(text) or [1])
    assert set(asked) == {"red", " red", "Red", " Red", "RED", " RED"}
