"""The last block at some positions against the whole one."""

import torch
from torch import nn

from mcit.engine.lastblock import cut, uncut
from tests.fakes.models import tiny_model
from tests.fakes.packs import questions


def test_chosen_positions_have_the_outputs_and_gradients_of_the_whole_block():
    model = tiny_model()
    batch = questions(model, [2])
    given = {"input_ids": batch.input_ids_BT[:1], "use_cache": False, "pixel_values": batch.pixels["pixel_values"][:1]}
    ends = torch.tensor([21, 24, 25])
    weight = model.get_input_embeddings().weight.requires_grad_(True)

    def outcome(keep, **more):
        logits = model(**given, logits_to_keep=keep, **more).logits[0]
        return logits, torch.autograd.grad(logits.square().sum(), weight)[0]

    whole = outcome(ends)
    block = cut(model)
    ran = []
    block.mlp.register_forward_hook(lambda m, args, out: ran.append(args[0].shape[1]))
    some = outcome(torch.arange(3), ends=ends)
    again = outcome(ends)
    uncut(block)
    assert ran == [3, batch.input_ids_BT.shape[1]] and "forward" not in vars(block)
    for one, other in zip(whole, some, strict=True):
        assert (one - other).norm() <= 1e-6 * one.norm()
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))


def test_blocks_of_other_parts_are_left_alone():
    model = tiny_model()
    model.get_decoder().layers[-1].add_module("pre_feedforward_layernorm", nn.Identity())
    assert cut(model) is None
    model.get_decoder().layers = nn.Identity()
    assert cut(model) is None
    uncut(None)
