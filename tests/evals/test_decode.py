"""Packs decoded greedily against a loop over single rows without padding, cache or ``generate``."""

from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import ConfigError
from mcit.data.collate import collate
from mcit.data.encode import Encoder
from mcit.engine.pack import pack_rows
from mcit.evals import decode as module
from mcit.evals.decode import best, decode, why_not
from mcit.evals.filters.base import Filter
from mcit.evals.generator import greedy
from mcit.models.load import load_processor
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.rows import picture, row

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder():
    return Encoder(load_processor(tiny_path()))


@pytest.fixture(scope="module")
def model():
    """Of tokens that end answers there are many, so that rows end at different steps."""
    return tiny_model()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Three questions of one picture, two of another, text, one with two pictures, a conversation, and a row twice."""
    folder = tmp_path_factory.mktemp("pictures")
    a, b = (picture(folder, f"{k}.png", colour=(90 * k, 200, 30)) for k in range(2))
    asked = [
        (["<image>\nWhat is it?"], (a,)),
        (["Say something short"], ()),
        (["<image>\nWhich colour is shown in this picture, and where?"], (a,)),
        (["<image>\nYes?"], (b,)),
        (["<image>\n<image>\nWhich is larger?"], (a, b)),
        (["<image>\nYes?"], (a,)),
        (["<image>\nIs it red?", "no", "Is it green?"], (b,)),
        (["<image>\nYes?"], (b,)),
        (["Hello"], ()),
    ]
    return [row(*texts, "gold", id=f"r{k}", images=shown, root=str(folder)) for k, (texts, shown) in enumerate(asked)]


def by_hand(model, encoder, one, limit, ends):
    """Token ids of one row, and the smallest distance of its two best logits."""
    batch = collate([encoder.prompt(one)], stream="t", pad_id=encoder.pad_id)
    ids, out, gap = batch.input_ids_BT, [], torch.inf
    while len(out) < limit and not (out and out[-1] in ends):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **batch.pixels).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        gap = min(gap, first - second)
        out.append(int(logits.argmax()))
        ids = torch.cat([ids, torch.tensor([out[-1:]])], dim=1)
    return out, gap


@pytest.mark.parametrize("limit", [1, 20])
def test_ids_are_those_of_single_rows(model, encoder, rows, limit):
    """Ends are tokens that the rows write at different steps, so that rows leave one by one."""
    alone = [by_hand(model, encoder, one, 20, ())[0] for one in rows]
    ends = {ids[2 + 2 * k] for k, ids in enumerate(alone[:7])}
    expected = [by_hand(model, encoder, one, limit, ends) for one in rows]
    assert all(gap > module.NEAR for _, gap in expected)
    pack = pack_rows(collate([encoder.prompt(one) for one in rows], stream="t", pad_id=encoder.pad_id), always=True)
    assert len(pack.pixels["pixel_values"]) == 2 + 2  # two shared, two of the row with both
    with torch.no_grad():
        found, near = decode(model, pack, ends=ends, limit=limit, device=CPU)
    assert found == [ids for ids, _ in expected] and near == [None] * len(rows)
    if limit > 1:
        assert len({len(ids) for ids in found}) > 2


def test_a_model_looks_as_before(model, encoder, rows):
    """Attention and last block are the model's own again, also after an error."""
    before = dict(model.get_decoder().layers[-1].__dict__), model.get_decoder().config._attn_implementation
    pack = pack_rows(collate([encoder.prompt(rows[0])], stream="t", pad_id=encoder.pad_id), always=True)

    def broken(number, scores_BV, so_far_BN):
        raise RuntimeError

    with pytest.raises(RuntimeError), torch.no_grad():
        decode(model, pack, ends=(), limit=2, device=CPU, edit=broken)
    after = dict(model.get_decoder().layers[-1].__dict__), model.get_decoder().config._attn_implementation
    assert after[1] == before[1] and after[0].keys() == before[0].keys()


def test_rows_leave_and_pictures_are_seen_once(model, encoder, rows, monkeypatch):
    """Widths of the passes: one of the pack, then one position per row that still writes."""
    seen, towers = [], []
    own = model.forward

    def counted(*args, **kwargs):
        seen.append(kwargs["input_ids"].shape[1])
        towers.append(len(kwargs.get("pixel_values", ())))
        return own(*args, **kwargs)

    asked = [rows[k] for k in (0, 2, 5)]
    alone = [by_hand(model, encoder, one, 6, ())[0] for one in asked]
    ends = {alone[0][1]}
    lengths = [len(by_hand(model, encoder, one, 6, ends)[0]) for one in asked]
    pack = pack_rows(collate([encoder.prompt(one) for one in asked], stream="t", pad_id=encoder.pad_id), always=True)
    monkeypatch.setattr(model, "forward", counted)
    with torch.no_grad():
        decode(model, pack, ends=ends, limit=6, device=CPU)
    assert seen == [len(pack), *[sum(n > k for n in lengths) for k in range(1, max(lengths))]]
    assert towers[0] == 1 and not any(towers[1:])


def test_near_ties_are_told():
    """Scores within 1e-4 of the best; a row with its best alone is none."""
    token_B, near_B = best(torch.tensor([[1.0, 0.99995, 0.0], [1.0, 0.9998, 0.0], [2.0, 2.0, 3.0]]))
    assert token_B.tolist() == [0, 0, 2] and near_B.tolist() == [True, False, False]


@pytest.mark.parametrize("share", [True, False])
def test_the_first_near_tie_of_an_answer(model, encoder, rows, share, monkeypatch):
    """A filter makes a tie of two tokens in the second step of one row, and after the end of another."""
    end = encoder.end_token_id

    class Ties(Filter):
        def logits(self, step, scores_BV, ctx):
            out = torch.full_like(scores_BV, -50.0)
            out[:, 70] = 0.0
            if step == 1:
                out[0, 71] = 5e-5
                out[1, end] = 9.0
            if step == 2:
                out[1, [72, 73]] = 7.0
            return out

    with greedy(model, encoder, max_new_tokens=4, share=share) as generator:
        found = generator.answer(rows[:3], filters=[Ties()], device=CPU)
    assert [(a["near_tie"], a["tokens"]) for a in found] == [(1, 4), (None, 1), (None, 4)]


def test_filters_see_left_padded_prompts_and_what_was_written(model, encoder, rows):
    """The same rows, ids and steps as with ``generate``; all rows stay."""

    class Looks(Filter):
        def __init__(self):
            super().__init__()
            self.seen = []

        def logits(self, step, scores_BV, ctx):
            self.seen.append((step, [r.id for r in ctx.rows], ctx.prompt_length, ctx.input_ids_BT.tolist()))
            return scores_BV

    looks, answers = [], []
    for share in (False, True):
        looks.append(Looks())
        with greedy(model, encoder, max_new_tokens=5, share=share) as generator:
            answers.append(generator.answer(rows, filters=[looks[-1]], device=CPU))
    assert looks[0].seen == looks[1].seen and answers[0] == answers[1]


def test_a_batch_with_too_many_tokens_is_divided(model, encoder, rows, monkeypatch):
    """Rows of one picture count it once: 16 tokens of a picture; answers stay the same."""
    sizes, own = [], module.decode

    def counted(model, pack, **kwargs):
        sizes.append(len(pack.place_BT))
        return own(model, pack, **kwargs)

    asked = [rows[k] for k in (0, 5, 2, 3, 6, 1, 8)]
    samples = [encoder.prompt(one) for one in asked]
    room = sum(len(s.input_ids_T) + 3 for s in samples[:3]) - 2 * 16
    with greedy(model, encoder, max_new_tokens=3) as generator:
        whole = generator.answer(asked, device=CPU)
    monkeypatch.setattr("mcit.evals.generator.decode", counted)
    with greedy(model, encoder, max_new_tokens=3, tokens=room) as generator:
        assert generator.answer(asked, device=CPU) == whole
    assert sizes[0] == 3 and sum(sizes) == 7
    sizes.clear()
    with greedy(model, encoder, max_new_tokens=3, tokens=1) as generator:
        generator.answer(asked, device=CPU)
    assert sizes == [1] * 7


def test_models_that_take_no_packs_say_why_once(encoder, rows, monkeypatch):
    """By their config, because outputs differ, or because the attention never gets to know of the pack."""
    samples = [encoder.prompt(one) for one in rows[:2]]
    given = {"pad_id": encoder.pad_id, "device": CPU}
    with torch.no_grad():
        assert why_not(SimpleNamespaceModel(), samples, **given) == ("its decoder is not known", True)
        model = tiny_model()
        assert why_not(model, samples, **given) == ("", True) and why_not(model, samples, **given) == ("", False)
        eager = tiny_model()
        eager.get_decoder().config._attn_implementation = "eager"
        assert why_not(eager, samples, **given) == ("base.attention is eager, and packs need sdpa", True)
        assert why_not(eager, samples, **given)[1] is False
        blind = tiny_model()
        own = blind.forward
        monkeypatch.setattr(blind, "forward", lambda *args, segments=None, **kwargs: own(*args, **kwargs))
        assert why_not(blind, samples, **given)[0]
        wrong = tiny_model()
        layer = wrong.get_decoder().layers[0].self_attn
        monkeypatch.setattr(layer, "layer_idx", 1)  # two layers of one name: their keys are taken for each other's
        assert "would change" in why_not(wrong, samples, **given)[0]


class SimpleNamespaceModel(SimpleNamespace):
    __hash__ = object.__hash__


def test_beams_are_searched_by_generate(model, encoder, rows):
    """No near tie is told of a search; more beams than tokens are refused."""

    class Beams(Filter):
        beams = 2

    with greedy(model, encoder, max_new_tokens=3) as generator:
        assert all("near_tie" not in a for a in generator.answer(rows[:2], filters=[Beams()], device=CPU))
        Beams.beams = 10**6
        with pytest.raises(ConfigError, match="beams"):
            generator.answer(rows[:2], filters=[Beams()], device=CPU)


def test_a_model_that_writes_a_picture_s_token_is_tried_too(encoder, rows):
    """The two ways to read a row are compared on text: a whole pass would want a picture for what was written."""
    model = tiny_model()
    above = torch.zeros(model.lm_head.out_features).index_fill(0, torch.tensor([encoder.image_token_id]), 99.0)
    model.lm_head.register_forward_hook(lambda head, given, out: out + above)
    samples = [encoder.prompt(one) for one in rows]
    pack = pack_rows(collate(samples[:2], stream="t", pad_id=encoder.pad_id), always=True)
    with torch.no_grad():
        assert why_not(model, samples, pad_id=encoder.pad_id, device=CPU) == ("", True)
        assert decode(model, pack, ends=(), limit=2, device=CPU)[0] == [[encoder.image_token_id] * 2] * 2
