"""The router's choice, and a pool trained with it."""

import torch

from mcit.analytic.head import RowHead
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
