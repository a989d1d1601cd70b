"""The contract suite for packages outside of mcit, on the sample package and on plug-ins that break it."""

import random

import pytest

from mcit import testing
from mcit.core.config import MethodConfig
from mcit.evals.filters.base import Filter
from mcit.methods.base import Method


@pytest.mark.slow
def test_sample_plug_ins_pass(tmp_path):
    testing.method_contract("mcit_sample.hardest:Hardest", folder=tmp_path / "method")
    testing.probe_contract("mcit_sample.spread:Spread", {"every": 2, "share": None}, folder=tmp_path / "probe")
    testing.router_contract("mcit_sample.nearest:Nearest", folder=tmp_path / "router")
    testing.router_contract("self_refined", {"rows": 8, "samples": 8}, folder=tmp_path / "own router")
    testing.filter_contract("strip", ["", " a\nb "])
    testing.scorer_contract("exact", [("yes", {"answer": "yes"}), ("no", {"answer": "yes"})])


class NoSlot(Method):
    class Config(MethodConfig):
        pass


class Random(Filter):
    def text(self, answer, row):
        return f"{answer}{random.random()}"


def test_what_breaks_the_contract_is_said(tmp_path):
    with pytest.raises(testing.ContractError, match="has no weight and holds no slot"):
        testing.method_contract(f"{__name__}:NoSlot", folder=tmp_path)
    with pytest.raises(testing.ContractError, match="gives two texts"):
        testing.filter_contract(f"{__name__}:Random", ["a"])
    with pytest.raises(testing.ContractError, match="the gold answer is not right"):
        testing.scorer_contract("choice", [("x", {"answer": "not a letter at all", "choices": ["a", "b"]})])
