"""Divergence on retained rows, and KL minimisation."""

import math

import pytest
import torch

from mcit.core.config import load_yaml
from mcit.core.paths import shipped
from mcit.methods.retain_kl import RetainKL
from tests.fakes.settings import shipped_config
from tests.fakes.steps import batch, context, output


def test_divergence_from_the_reference_by_hand():
    """Reference (3/4, 1/4), model (1/2, 1/2): KL .130812; beside ascent on M = 2 the objective is -1.8692."""
    reference = output(torch.tensor([[math.log(3), 0.0]]), [0])
    out = output(torch.zeros(1, 2), [0])
    term = RetainKL(RetainKL.Config(alpha=1.0)).loss_term(out, batch("task", tokens=1), context(reference=reference))
    assert term.sum.item() == pytest.approx(0.130812, rel=1e-5) and term.per == "tokens"
    assert -2 + term.sum.item() == pytest.approx(-1.8692, abs=1e-4)


def test_it_takes_the_place_of_the_tasks_loss_and_leaves_other_streams():
    method = RetainKL(RetainKL.Config())
    assert method.claims.slots == {"objective:task"} and method.claims.needs == {"reference:stage_start"}
    assert method.loss_term(None, batch("forget"), context()) is None
    off = RetainKL(RetainKL.Config(alpha=0.0))
    assert off.loss_term(None, batch("task"), context()) is None and not off.claims.slots | off.claims.needs


def test_kl_min_is_ascent_beside_it():
    assert shipped_config(RetainKL) == RetainKL.Config()
    preset = load_yaml(shipped("configs") / "methods" / "kl_min.yaml")["methods"]
    assert [(m["name"], m.get("gamma"), m.get("alpha")) for m in preset] == [
        ("ga", 1.0, 1.0),
        ("retain_kl", None, 1.0),
    ]
