"""The probe of tasks seen so far, by hand."""

import math
from types import SimpleNamespace

import torch

from mcit.probes.seen import Seen
from tests.fakes.rows import row
from tests.fakes.steps import output


def test_rows_by_seed_from_the_validation_split_or_the_training_rows():
    splits = {("a", "validation"): [], ("a", "train"): [row("q", "x", id=f"a{k}") for k in range(9)]}
    splits[("b", "validation")] = [row("q", "x", id=f"b{k}") for k in range(3)]

    def rows(seed):
        data = SimpleNamespace(tasks=("a", "b"), seed=seed, rows=lambda task, split: splits[task, split])
        return {task: [r.id for r in mine] for task, mine in Seen(Seen.Config(count=4)).rows(data).items()}

    assert rows(1) == rows(1) and rows(1)["b"] == ["b0", "b1", "b2"] and len(set(rows(1)["a"])) == 4
    assert rows(1)["a"] != rows(2)["a"]


def test_by_hand():
    """Two of three tokens right; losses log 2, log 2 and log 4 of probabilities 1/2, 1/2 and 1/4."""
    logits = torch.tensor([[0.5, 0.5 - 1e-6], [0.5 - 1e-6, 0.5], [0.75, 0.25]]).log()
    out = output(logits, [0, 1, 1])
    ctx = SimpleNamespace(forward_pass=lambda rows, share: [(None, out)], all_sum=lambda t: t)
    (found,) = Seen(Seen.Config()).measure({"t": ["row"], "empty": []}, ctx).values()
    assert found["tokens"] == 3 and math.isclose(found["accuracy"], 2 / 3)
    assert math.isclose(found["loss"], (math.log(2) * 2 + math.log(4)) / 3, rel_tol=1e-5)
