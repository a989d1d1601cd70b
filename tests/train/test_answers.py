"""Answers of the stage-start model: greedy, kept with the run, refusals left out."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from mcit.core.types import Turn
from mcit.train import answers
from mcit.train.answers import StartAnswers
from tests.fakes import steps


def test_answers_are_made_once_and_kept(tmp_path, monkeypatch):
    """By what the weights, the rows and the limit are; a refusal is empty."""
    made = []

    class Greedy:
        def __init__(self, model, encoder, *, max_new_tokens, tokens, share):
            assert (tokens, share) == (9, False)
            made.append(max_new_tokens)

        def __enter__(self):
            return SimpleNamespace(answer=lambda rows, device: [{"text": f" about {r.id} "} for r in rows])

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(answers, "greedy", Greedy)
    rows = steps.rows("t", 40)

    def ask(identity="a", given=rows, limit=4):
        where = {"device": torch.device("cpu"), "folder": tmp_path}
        how = {"tokens": 9, "share": False}
        return StartAnswers(None, None, identity={"w": identity}, sharing=how, **where)(given, limit)

    assert ask() == [f"about t{n}" for n in range(40)] and ask() == ask() and made == [4]
    ask("b"), ask(limit=5), ask(given=[replace(rows[0], turns=(Turn("user", "other"), rows[0].turns[1]))])
    assert made == [4, 4, 5, 4]
    monkeypatch.setattr(answers, "is_refusal", lambda text: text == "about t1")
    assert ask()[:3] == ["about t0", "", "about t2"]
