"""Every check passes on the plain engine, and fails on one that breaks what the check is about."""

import time

import pytest
import torch

from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.engine import plain
from mcit.engine.gradients import LocalGradients
from mcit.engine.plain import PlainEngine
from mcit.export.export import export_stage
from mcit.selftest.selftest import CHECKS, Item, outcome_of, run_items
from tests.fakes.run_dir import environment


def outcome(check, folder, export=export_stage):
    item = Item("plain", check)
    run_items([item], folder, deadline=time.time() + 200, environment=environment(), export=export)
    return outcome_of(item, folder, ranks=1)


@pytest.mark.parametrize("check", CHECKS)
def test_the_plain_engine_passes(check, tmp_path):
    found = outcome(check, tmp_path)
    assert found.passed and 0 <= found.number <= 1e-5, found


def ignores_edits(patch):
    patch.setattr(LocalGradients, "replace", lambda *args: None)


def adds_no_penalty(patch):
    patch.setattr(PlainEngine, "_add_gradient", lambda *args: None)


def keeps_gradients(patch):
    clear = PlainEngine.discard

    def discard(self):
        kept = {n: p.grad for n, p in self._named.items()}
        clear(self)
        for name, gradient in kept.items():
            self._named[name].grad = gradient

    patch.setattr(PlainEngine, "discard", discard)


def does_not_clip(patch):
    patch.setattr(PlainEngine, "_scale_gradients", lambda *args: None)


def forgets_text(patch):
    backward = PlainEngine.backward

    def images_only(self, loss, batch):
        backward(self, loss if any(row.images for row in batch.rows) else 0 * loss, batch)

    patch.setattr(PlainEngine, "backward", images_only)


def freezes_nothing(patch):
    patch.setattr(LocalGradients, "freeze", lambda *args: None)


def loses_moments(patch):
    patch.setattr(plain, "restore_optimizer", lambda *args: None)


def steps_too_far(patch):
    monkey = plain.lr_factor
    patch.setattr(plain, "lr_factor", lambda *args: 1.001 * monkey(*args))


def leaves_a_hole(patch):
    finish = PlainEngine.finish

    def empties(self):
        finish(self)
        next(p for p in self.model.parameters() if not p.requires_grad).data = torch.empty(0)

    patch.setattr(PlainEngine, "finish", empties)


BROKEN = {
    "window": ignores_edits,
    "penalty": adds_no_penalty,
    "discard": keeps_gradients,
    "clipping": does_not_clip,
    "mixed rows": forgets_text,
    "frozen entries": freezes_nothing,
    "checkpoint": loses_moments,
    "agreement": steps_too_far,
    "whole weights": leaves_a_hole,
}


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_engine_fails(check, tmp_path, monkeypatch):
    BROKEN[check](monkeypatch)
    found = outcome(check, tmp_path)
    assert not found.passed and found.number is not None and found.number > 1e-5, found


def test_an_export_that_says_something_else_fails(tmp_path):
    def tampered(run, *, stage, kind, out):
        export_stage(run, stage=stage, kind=kind, out=out)
        if kind == "merged":
            file = out / "model.safetensors"
            tensors = {n: t.clone() for n, t in load_tensors(file).items()}
            name = next(n for n in tensors if "projector" in n and n.endswith("linear_1.weight"))
            tensors[name] *= 1.1
            file.unlink()
            save_tensors(file, tensors)

    found = outcome("export", tmp_path, export=tampered)
    assert not found.passed and found.number > 1e-5, found


def test_a_check_finds_every_broken_engine_named_here():
    assert set(BROKEN) | {"export"} == set(CHECKS)
