"""Adding a method touches one Python file, one test and one YAML; here one is written outside and trains a stage."""

import sys
import textwrap

import torch

from tests.fakes.bench import plan_of, run_plan

CODE = '''
"""Shrink: penalise the squared size of every update.

Paper: none, an example. arXiv:0000.00000
Hooks: weight_penalty. State: none.
"""
from mcit.core.config import Field, MethodConfig
from mcit.core.types import Claims
from mcit.methods.base import Method


class Shrink(Method):
    """Example of a plug-in."""

    name = "shrink"
    claims = Claims(needs=frozenset({"adapter:lora"}))

    class Config(MethodConfig):
        weight: float = Field(1.0, ge=0)
        """Factor."""

    def weight_penalty(self, unit, tensors, ctx):
        if unit.kind != "lora":
            return None
        return self.config.weight * (tensors["B"] @ tensors["A"]).pow(2).sum() / ctx.num_units
'''


def test_a_method_in_a_temporary_folder_runs_a_stage(tmp_path, monkeypatch):
    (tmp_path / "my_shrink.py").write_text(textwrap.dedent(CODE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_shrink", raising=False)
    sizes = []
    for weight in (0.0, 1000.0):
        methods = [{"name": "my_shrink:Shrink", "weight": weight}]
        plan = plan_of(defaults={"methods": methods, "adapter": {"rank": 4, "alpha": 8, "carry": "stack"}})
        model = run_plan(plan, tmp_path / str(weight), only=1)["model"]
        total = 0.0
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B.stage01.weight"):
                total += float((parameter @ model.get_parameter(name.replace("lora_B", "lora_A"))).pow(2).sum())
        sizes.append(total)
    assert torch.isfinite(torch.tensor(sizes)).all() and sizes[1] < 0.5 * sizes[0]
