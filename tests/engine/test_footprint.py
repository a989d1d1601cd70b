import torch
from torch import nn

from mcit.engine.footprint import Footprint


class Other(dict):
    pass


def test_attributes_hooks_and_dictionaries_are_taken_off_and_earlier_ones_stay():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("mine"))
    model.own = 1
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    footprint = Footprint(model)
    model[0].register_forward_hook(lambda *_: seen.append("theirs"))
    model[1].register_full_backward_hook(lambda *_: seen.append("back"))
    model[1].register_forward_pre_hook(lambda *_: seen.append("pre"))
    model.forward = lambda x: x
    model[0]._parameters = Other(model[0]._parameters)
    model[0].weight.ds_id = 3
    model[0].weight.register_hook(lambda g: seen.append("tensor"))
    model[0].weight.grad = torch.ones(2, 2)
    footprint.restore()
    model(torch.ones(1, 2)).sum().backward()
    assert seen == ["mine"]
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before
    assert type(model[0]._parameters) is dict and not hasattr(model[0].weight, "ds_id")
