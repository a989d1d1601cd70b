"""Which rows a router of classes looks at, and what it calls them."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from mcit.routers.formulas.labelled import OTHER, drawn, features, labels_of
from tests.fakes.rows import row
from tests.fakes.steps import batch


def test_labels():
    given = [row("q", a, id=str(k)) for k, a in enumerate(["x", "z", "x", "y"])]
    assert labels_of(given, "stage", most=64) == ["", "", "", ""]
    assert labels_of(given, "task", most=64) == [r.task for r in given]
    assert labels_of(given, "answer", most=2) == ["x", OTHER, "x", "y"]  # of equally frequent ones the first by name


def test_rows_are_drawn_by_seed_in_their_order():
    given = [row("q", "a", id=str(k)) for k in range(9)]
    some = [int(r.id) for r in drawn(given, 4, 1)]
    assert len(some) == 4 and some == sorted(some) and drawn(given, 99, 1) == given
    assert some != [int(r.id) for r in drawn(given, 4, 2)]


def test_features_are_of_the_token_before_the_last_answer():
    """Answers begin at places 1 and 4: the last begins at 4, and the state is that of place 3."""
    labels = torch.tensor([[-100, 5, -100, -100, 6, 7]])
    hidden = torch.arange(6.0).reshape(1, 6, 1)
    ctx = SimpleNamespace(
        forward_pass=lambda rows: iter([(replace(batch(), labels_BT=labels), SimpleNamespace(hidden={"last": hidden}))])
    )
    assert features([], ctx).tolist() == [[3.0]]
