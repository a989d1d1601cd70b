"""Which states of a base a run of GeRe keeps."""

from types import SimpleNamespace

import pytest

from mcit.core.errors import StateError
from mcit.methods.formulas.general_states import built, fingerprint
from mcit.methods.gere import GeRe
from tests.fakes.general import step_context


def test_runs_on_disk_know_their_states_by_this_fingerprint():
    """A default or a version that changed would compute the states anew in the middle of a run, or refuse to go on."""
    text = {"max_length": 563, "bos": False}
    layer = "last hidden state after the final norm, text positions"
    common = {"base": {"sha256": "b", "dtype": "fp32"}, "text": text, "layer": layer, "version": 1}
    for variant, kept in (
        ("tm", {"what": "states", "multiplier": 1.0}),
        ("kl", {"what": "logits", "temperature": 2.0, "top_k": 64}),
        ("l1", {"what": "hidden, bf16"}),
    ):
        found = fingerprint(GeRe.Config(variant=variant), step_context())
        assert found == {**common, "pool": {"recipe": "general/default", "digest": "p"}, "kept": kept}


def test_each_variant_keeps_what_its_loss_compares_with(monkeypatch):
    """States with thresholds, distributions of the likeliest tokens, or the features themselves; with the method's settings."""
    for name in ("build_states", "build_logits", "build_hidden"):
        monkeypatch.setattr(
            f"mcit.methods.formulas.general_states.{name}", lambda ctx, rows, name=name, **given: (name, given)
        )
    for variant, expected in (
        ("tm", ("build_states", {"multiplier": 1.5})),
        ("kl", ("build_logits", {"count": 3, "temperature": 0.5})),
        ("l1", ("build_hidden", {})),
        ("l2", ("build_hidden", {})),
    ):
        config = GeRe.Config(variant=variant, multiplier=1.5, top_k=3, temperature=0.5)
        assert built(config, step_context(), []) == expected


def test_states_of_another_base_or_pool_are_refused():
    """Both are named, the one the states are of and the present one."""
    method, ctx = GeRe(GeRe.Config()), step_context()
    method._blob(ctx)
    known = method.state_dict()
    for key, other, shown in (
        ("base", SimpleNamespace(**{**vars(ctx), "base": {"sha256": "c", "dtype": "fp32"}}), ("'b'", "'c'")),
        ("pool", SimpleNamespace(**{**vars(ctx), "data": SimpleNamespace(pool_digest=lambda r: "q")}), ("'p'", "'q'")),
    ):
        again = GeRe(GeRe.Config())
        again.load_state_dict(known)
        with pytest.raises(StateError, match=key) as caught:
            again._blob(other)
        assert all(text in str(caught.value) for text in shown)
