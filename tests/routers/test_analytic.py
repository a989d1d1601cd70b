"""The router's choice, and a pool trained with it."""

from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from mcit.analytic.head import RowHead, row_key
from mcit.core.types import Row, Turn
from mcit.routers.analytic import Analytic


def test_the_member_with_the_largest_score_among_those_there_are():
    head = RowHead(gamma=0.1, bits=10)
    x = torch.eye(3).repeat(4, 1)
    for k, label in enumerate(("m0", "m1", "m2")):
        head.learn(label, x[k::3], [f"{label}{i}" for i in range(4)])
    tensors = {"weight|head": head.weight()}
    given = (
        {"head": head.state()},
        tensors,
        lambda rows, member: torch.eye(3)[[2, 0, 1]] * (9 if member is None else 0),
    )
    rows = [{"id": "a"}, {"id": "b"}, {"id": "c"}]
    assert Analytic.route(rows, ["m0", "m1", "m2"], *given) == ["m2", "m0", "m1"]
    assert Analytic.route(rows, ["m0", "m1"], *given)[1:] == ["m0", "m1"]


def test_state_goes_round():
    router = Analytic(Analytic.Config(gamma=0.5))
    router._loaded().learn("m", torch.randn(4, 3), list("abcd"))
    for kind, tensor in router._loaded().tensors().items():
        router.tensors.put(kind, "head", tensor)
    other = Analytic(Analytic.Config(gamma=0.5))
    other.load_state_dict(router.state_dict())
    for kind in ("gram", "cross", "weight"):
        other.tensors.put(kind, "head", router.tensors.require(kind, "head"))
    assert (
        torch.equal(other._loaded().weight(), router._loaded().weight()) and other.state_dict() == router.state_dict()
    )


def test_settings_and_their_bounds():
    config = Analytic.Config()
    assert (config.gamma, config.bits) == (0.1, 10)
    assert Analytic.Config(bits=1).bits == 1 and Analytic.Config(bits=20).bits == 20
    for wrong in ({"gamma": 0}, {"bits": 0}, {"bits": 21}):
        with pytest.raises(ValidationError):
            Analytic.Config(**wrong)


def test_features_have_a_root_mean_square_of_one_beside_the_constant():
    """By hand: (3, 4) becomes (.85, 1.13), below the constant's 1.2; (0, .01) becomes (0, 1.41), above it."""
    weight_DK = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.2, 0.0]])
    x_BD = torch.tensor([[3.0, 4.0], [0.0, 0.01]])
    state = {"head": {"classes": ["constant", "second"]}}
    rows = [{"id": "a"}, {"id": "b"}]
    given = (state, {"weight|head": weight_DK}, lambda rows, member: x_BD)
    assert Analytic.route(rows, ["constant", "second"], *given) == ["constant", "second"]


@pytest.mark.parametrize("mine", [(0, 1, 2), (0, 2), (1,), ()])
def test_ranks_learn_what_all_of_them_saw(mine):
    """One rank of two: `mine` are the rows it passed through the base, the other rank adds the rest."""
    x_ND = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.25]])
    rows = [Row(f"r{k}", (), (Turn("user", "q"), Turn("assistant", f"a{k}")), "t", "t:1") for k in range(3)]
    theirs = [k for k in range(3) if k not in mine]
    answer = torch.tensor([[False, True]])

    def base_pass(given, *, logits, size):
        assert given == rows and logits and size == 1
        for k in mine:
            hidden = torch.stack([x_ND[k], torch.full((2,), 9.0)])[None]
            batch = SimpleNamespace(answer_BT=answer, attention_BT=torch.ones_like(answer))
            yield (k,), batch, SimpleNamespace(hidden={"last": hidden})

    def all_sum(value):
        if value.dim() == 1:
            return value + torch.tensor([2.0 * bool(theirs), float(bool(theirs))], dtype=torch.float64)
        more = torch.zeros_like(value)
        more[theirs] = x_ND[theirs].double()
        return value + more

    router = Analytic(Analytic.Config())
    data = SimpleNamespace(stage_rows=lambda: rows)
    router.learn("m", SimpleNamespace(data=data, base_pass=base_pass, all_sum=all_sum))
    whole = RowHead(gamma=0.1, bits=10)
    whole.learn("m", x_ND, [row_key(row) for row in rows])
    assert router.state_dict() == {"head": whole.state()}
    for kind, tensor in whole.tensors().items():
        assert torch.equal(router.tensors.require(kind, "head"), tensor)
