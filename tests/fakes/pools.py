"""Pools of tiny adapters on disk, as stages of a run leave them, without training any."""

import torch

from mcit.models import adapters
from mcit.models.adapterfile import write_adapter
from mcit.models.lineage import Delta, Lineage, delta_digest
from mcit.models.pool import members_of, write_members
from mcit.train import routing
from tests.fakes.models import adapted, tiny_model, tiny_path


def stored(root, routers, *, carry="pool"):
    """One stage per router, each with a member of its own and the router's state; the lineage of all of them."""
    lineage = Lineage(str(tiny_path()), "0" * 64)
    for k, router in enumerate(routers, start=1):
        folder = root / f"{k:02d}-{'abc'[k - 1]}"
        write_adapter(folder / "adapter", adapter(k), base=lineage.base, base_sha256=lineage.base_sha256)
        write_members(folder, members_of(lineage), member=folder.name, stage=folder.name)
        routing.save(router, folder)
        delta = Delta(folder, "lora", carry, delta_digest(folder))
        lineage = Lineage(lineage.base, lineage.base_sha256, (*lineage.deltas, delta))
    return lineage


def adapter(seed):
    """LoRA pairs of rank 4 that change what the model answers."""
    model = tiny_model()
    adapted(model, seed=seed, also_train=())
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in adapters.lora_layers(model).values():
            layer.lora_B["default"].weight.normal_(std=0.1)
    return adapters.read_live(model)
