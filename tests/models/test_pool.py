"""Adapters kept apart: one of them acts at a time, and the model is as before afterwards."""

from pathlib import Path
from types import SimpleNamespace

import torch

from mcit.core.files import read_json
from mcit.models import adapters
from mcit.models.lineage import Lineage
from mcit.models.pool import attached, members_of, using, write_members
from tests.fakes.models import adapted, tiny_model


def made(seed):
    model = tiny_model()
    adapted(model, seed=seed, also_train=())
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.lora_layers(model).values():
            layer.lora_B["default"].weight.normal_(std=0.1)
    file = adapters.read_live(model)
    return SimpleNamespace(read=lambda: file)


def test_one_member_acts_at_a_time():
    members = {"01-a": made(1), "02-b": made(2)}
    model, ids = tiny_model().eval(), torch.arange(2, 12)[None]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        found = {}
        with attached(model, members) as live:
            assert torch.equal(model(input_ids=ids).logits, plain)
            for name in live:
                with using(model, live[name]):
                    found[name] = model(input_ids=ids).logits
            assert torch.equal(model(input_ids=ids).logits, plain)
        assert not adapters.lora_layers(model) and torch.equal(model(input_ids=ids).logits, plain)
        for name, member in members.items():
            adapters.attach(model, member.read(), name="x")
            assert torch.equal(model(input_ids=ids).logits, found[name]) and not torch.equal(found[name], plain)
            adapters.remove(model, name="x")


def test_records_name_the_stage_that_trained_a_member_last(tmp_path):
    def delta(name, carry="pool"):
        (tmp_path / name).mkdir(exist_ok=True)
        return SimpleNamespace(folder=Path(tmp_path / name), carry=carry)

    one, two, three = delta("01-a"), delta("02-b"), delta("03-c")
    write_members(one.folder, {}, member="01-a", stage="01-a")
    write_members(two.folder, members_of(Lineage("", "", (one,))), member="02-b", stage="02-b")
    write_members(three.folder, members_of(Lineage("", "", (one, two))), member="01-a", stage="03-c")
    assert members_of(Lineage("", "", (one, two, three))) == {"01-a": three, "02-b": two}
    assert read_json(three.folder / "pool.json")["member"] == "01-a"
    assert members_of(Lineage("", "")) == {} and members_of(Lineage("", "", (delta("x", "merge"),))) == {}
