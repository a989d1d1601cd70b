"""Attention of new tokens over kept keys and values, against attention over each row by itself."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mcit.engine.kvcache import KeyCache, Prefill
from mcit.engine.pack import Pack, Run

CPU = torch.device("cpu")


@dataclass
class Rows:
    """Rows of a pack by lengths: (shared prefix, [own lengths]) of each picture."""

    groups: list

    def pack(self):
        places, runs, at = [], [], 0
        for shared, own in self.groups:
            start, at = at, at + shared
            if len(own) == 1:
                runs.append(Run(start, shared + own[0]))
            elif shared:
                runs.append(Run(start, shared))
            for length in own:
                places.append([*range(start, start + shared), *range(at, at + length)])
                if len(own) > 1 and length:
                    runs.append(Run(at, length, start, shared))
                at += length
        longest = max(map(len, places))
        place_BT = torch.tensor([row + [-1] * (longest - len(row)) for row in places])
        positions = torch.zeros(at, dtype=torch.int64)
        return Pack(torch.zeros(at, dtype=torch.int64), positions, place_BT, {}, tuple(runs)), places


CASES = {
    "alone": [(0, [5]), (0, [9]), (0, [7])],
    "one picture": [(6, [3, 1, 4])],
    "unlike": [(6, [3, 1, 4]), (0, [2]), (9, [2, 2])],
    "the same question twice": [(6, [0, 0]), (0, [3])],
}


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("name", CASES)
def test_new_tokens_attend_to_their_rows(name, heads):
    """Nineteen tokens (more than there is room for at first) in two layers; after the third a row leaves, then another."""
    draw = torch.Generator().manual_seed(0)
    pack, places = Rows(CASES[name]).pack()
    cache = KeyCache(pack, CPU)
    kept = [{b: [] for b in range(len(places))} for _ in range(2)]

    def drawn(count):
        return [torch.randn(count, h, 8, generator=draw) for h in (heads[0], heads[1], heads[1])]

    prefill = Prefill(pack, cache, CPU, half=False)
    for layer in range(2):
        q, k, v = drawn(len(pack))
        prefill.attend(q, k, v, None, layer=layer)
        for b, own in enumerate(places):
            kept[layer][b] = [k[own], v[own]]
    assert cache.lasts(pack).tolist() == [own[-1] for own in places]
    here = list(range(len(places)))
    for number in range(19):
        assert cache.positions().tolist() == [len(places[b]) + number for b in here]
        for layer in range(2):
            q, k, v = drawn(len(here))
            out = cache.attend(q, k, v, None, layer=layer)
            for at, b in enumerate(here):
                kept[layer][b] = [
                    torch.cat([old, new[at : at + 1]]) for old, new in zip(kept[layer][b], (k, v), strict=True)
                ]
                key, value = (x.repeat_interleave(heads[0] // heads[1], 1).transpose(0, 1) for x in kept[layer][b])
                alone = scaled_dot_product_attention(q[at][:, None], key, value)[:, 0]
                assert torch.allclose(out[at], alone, atol=1e-5)
        cache.step()
        if number in (2, 5) and len(here) > 1:
            cache.keep(range(1, len(here)) if number == 2 else range(len(here) - 1))
            here = here[1:] if number == 2 else here[:-1]


def test_a_scale_is_used():
    pack, _ = Rows([(0, [3])]).pack()
    cache = KeyCache(pack, CPU)
    k = torch.randn(3, 1, 4)
    Prefill(pack, cache, CPU, half=False).attend(k, k, k, 0.7)
    q, new = torch.randn(1, 1, 4), torch.randn(1, 1, 4)
    key = torch.cat([k, new]).transpose(0, 1)
    alone = scaled_dot_product_attention(q.transpose(0, 1), key, key, scale=0.7)[:, 0]
    assert torch.allclose(cache.attend(q, new, new, 0.7)[0], alone, atol=1e-6)
