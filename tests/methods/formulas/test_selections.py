"""The log of selections by hand."""

from types import SimpleNamespace

import pytest

from mcit.core.errors import StateError
from mcit.methods.formulas.halves import Part
from mcit.methods.formulas.selections import checked, followed, recorded


def test_a_log_is_followed_and_checked():
    """Stage 1 trains a, stage 2 b; begun again, stage 2 replaces its entry. ``fixed`` follows 1, ``complement`` 2."""
    stages = [SimpleNamespace(index=k, name=f"s{k}") for k in (1, 2)]
    log = recorded(recorded([], ["a.weight"], stages[0]), ["c.weight"], stages[1])
    log = recorded(log, ["b.weight"], stages[1])
    assert [entry["trained"] for entry in log] == [["a.weight"], ["b.weight"]]
    parts = [Part(name, 0, name, "ffn", 1) for name in "abc"]
    assert followed(parts, log, schedule="fixed") == {"a"} and followed(parts, log, schedule="complement") == {"a", "c"}
    assert checked(log, where="hft") == log
    with pytest.raises(StateError, match="sha256"):
        checked([{**log[0], "trained": []}], where="hft")
