from mcit.core.schema import EngineConfig
from mcit.engine import zero
from mcit.engine.base import EngineSpec
from mcit.engine.make import make_engine
from mcit.engine.plain import PlainEngine
from tests.engine.test_plain import OPTIM
from tests.fakes.models import adapted, tiny_model


def test_the_kind_says_which_engine_and_stage(monkeypatch):
    model = tiny_model()
    spec = EngineSpec(adapted(model), OPTIM, 1)
    assert type(make_engine(model, spec, EngineConfig())) is PlainEngine
    made = []
    monkeypatch.setattr(zero, "ZeroEngine", lambda *a, **k: made.append(k))
    for kind, offload in (("zero1", "none"), ("zero2", "optimizer"), ("zero3", "parameters")):
        make_engine(model, spec, EngineConfig(kind=kind, offload=offload))
    assert made == [
        {"stage": 1, "offload": "none"},
        {"stage": 2, "offload": "optimizer"},
        {"stage": 3, "offload": "parameters"},
    ]
