"""What works with each public family: tiny models of its own classes, one test per property, one cell of the table in
docs/models.md per family and property. ``MCIT_WRITE_DOCS=1`` writes the cells instead of comparing them.

Formats were taken from the families' publications and model cards; templates are in tests/fakes/families/templates.py.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mcit.core.errors import DataError
from mcit.core.schema import AdapterConfig
from mcit.data.collate import collate
from mcit.data.encode import IGNORE, Encoder
from mcit.data.ghost import Ghost
from mcit.engine import packing
from mcit.engine.forward import run_model
from mcit.engine.pack import like_probe, pack_rows
from mcit.engine.vision import keep_features
from mcit.evals.choosing import Choosing
from mcit.evals.generator import greedy
from mcit.models import adapters
from mcit.models.load import load_base, load_processor
from mcit.models.units import group_of, lora_targets, outermost
from tests.fakes.families import table
from tests.fakes.families.make import FAMILIES, write
from tests.fakes.families.rows import pictures, rows
from tests.fakes.families.task import LIKE_COUNTS

CPU = torch.device("cpu")
NAMES = list(FAMILIES)
NO_END_TOKEN = {"llava"}
"""Their template closes no answer; the tokenizer's end token is put there."""
OWN_PROMPT = {"llava_onevision"}
"""Their template writes other white space before an answer than its generation prompt has; the prompt's is used."""
PACKED = {"llava", "llava_next", "llava_onevision", "internvl", "smolvlm", "idefics3"}
"""Their decoders take rows as one sequence."""


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="session")
def family(home):
    """Folder, encoder, model and rows by name, made when first asked for."""
    made = {}
    shown = pictures(home)

    def get(name):
        if name not in made:
            folder = home / name
            folder.mkdir()
            write(name, folder)
            encoder = Encoder(load_processor(folder))
            made[name] = SimpleNamespace(
                name=name, folder=folder, encoder=encoder, model=load_base(folder), rows=rows(shown, name)
            )
        return made[name]

    return get


def messages(row, *, upto=None):
    """A row as a user of transformers writes it, pictures included."""
    images = iter(Image.open(f"{row.root}/{name}") for name in row.images)
    out = []
    for turn in row.turns[:upto]:
        parts = [{"type": "image", "image": next(images)} for _ in range(turn.text.count("<image>"))]
        parts.append({"type": "text", "text": turn.text.replace("<image>\n", "")})
        out.append({"role": turn.role, "content": parts})
    return out


def by_transformers(one, row, **settings):
    """What the family's own processor makes of the row (a date is fixed as ours is)."""
    template = {"date_string": "01 Jan 2026"} if one.name == "mllama" else {}
    return one.encoder.processor.apply_chat_template(
        messages(row, **settings), tokenize=True, return_dict=True, add_generation_prompt=bool(settings), **template
    )


def logits(model, batch):
    with torch.no_grad():
        out = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_BT, use_cache=False, **batch.pixels)
    return out.logits


@pytest.mark.parametrize("name", [n for n in NAMES if n != "paligemma"])
def test_prompts_are_the_processors_own_ids_and_pixels(family, name):
    """With one picture, several and none: ids, and every other value the processor gives the model."""
    one = family(name)
    for row in one.rows:
        if len(row.turns) > 2:
            continue
        mine, theirs = one.encoder.prompt(row), by_transformers(one, row, upto=-1)
        assert mine.input_ids_T.tolist() == list(theirs["input_ids"][0]), row.id
        for key, value in mine.pixels.items():
            other = torch.as_tensor(np.asarray(theirs[key][0] if key in mine.token_keys else theirs[key]))
            assert torch.equal(value.reshape(-1).double(), other.reshape(-1).double()), (row.id, key)
    table.cell(name, "prompt ids", "equal")


@pytest.mark.parametrize("name", [n for n in NAMES if n != "paligemma"])
def test_conversations_are_the_templates_own(family, name):
    """The whole sequence up to the last answer's end, with what is said of the family where it differs."""
    one = family(name)
    tokenizer = one.encoder.processor.tokenizer
    ends = {tokenizer.eos_token_id} if name in NO_END_TOKEN else set()
    for row in one.rows:
        mine, theirs = one.encoder.encode(row).input_ids_T.tolist(), list(by_transformers(one, row)["input_ids"][0])
        if name in OWN_PROMPT | NO_END_TOKEN:  # compared without white space and end tokens
            mine, theirs = (
                [t for t in ids if t not in ends and tokenizer.decode([t]).strip()] for ids in (mine, theirs)
            )
        assert mine == theirs[: len(mine)], row.id
        assert not tokenizer.decode(theirs[len(mine) :]).strip()
    said = "end token added" if name in NO_END_TOKEN else "the prompt's white space" if name in OWN_PROMPT else "equal"
    table.cell(name, "conversation ids", said)


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_answers_are_supervised(family, name):
    """Decoded they read as written, with one end token each; no image position is; a row too long is refused whole."""
    one = family(name)
    end = one.encoder.processor.tokenizer.convert_ids_to_tokens(one.encoder.end_token_id)
    for row in one.rows:
        sample = one.encoder.encode(row)
        shown = [text.strip() for text, on in one.encoder.supervised_text(sample) if on]
        assert shown == [turn.text + end for turn in row.turns if turn.role == "assistant"]
        if row.images:
            assert sample.image_T.any() and (sample.labels_T[sample.image_T] == IGNORE).all()
            short = Encoder(one.encoder.processor, max_length=len(sample.input_ids_T) - 1)
            with pytest.raises(DataError, match="never cut"):
                short.encode(row)
    table.cell(name, "answers", "exact")


@pytest.mark.parametrize("name", NAMES)
def test_several_pictures_stand_apart(family, name):
    """Which picture comes first changes the logits; the processor's own call agreed on ids and pixels above."""
    one = family(name)
    row = next(row for row in one.rows if len(row.images) == 2)
    swapped = replace(row, images=row.images[::-1])
    first, second = (collate([one.encoder.prompt(r)], stream="t", pad_id=0) for r in (row, swapped))
    assert (logits(one.model, first)[0, -1] - logits(one.model, second)[0, -1]).abs().max() > 1e-3
    table.cell(name, "several pictures", "yes")


def batches(name, rows):
    """All rows in one batch, in both orders; of `LIKE_COUNTS` those with equally many pictures."""
    if name not in LIKE_COUNTS:
        return [rows, rows[::-1]]
    return [[row for row in rows if len(row.images) == 1]]


def apart(alone, batch, together):
    """Largest difference of logits at real positions between rows in a batch and the same rows one by one."""
    gaps = []
    for k, single in enumerate(alone):
        gaps.append((together[k][batch.attention_BT[k].bool()] - single[0]).abs().max())
    return float(max(gaps))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", NAMES)
def test_padded_batches_equal_rows_one_by_one(family, name, side):
    """Text, one picture and several in one batch, as trained (right) and as asked (left), against single passes."""
    one = family(name)
    encode = one.encoder.encode if side == "right" else one.encoder.prompt
    pad = one.encoder.pad_id
    for together in batches(name, one.rows):
        samples = [encode(row) for row in together]
        assert len({len(sample.input_ids_T) for sample in samples}) > 1
        alone = [logits(one.model, collate([s], stream="t", pad_id=pad)) for s in samples]
        batch = collate(samples, stream="t", pad_id=pad, side=side)
        assert apart(alone, batch, logits(one.model, batch)) < 1e-4
    table.cell(name, "padding", "1e-4, like counts" if name in LIKE_COUNTS else "1e-4")


def asked_otherwise(row):
    """The row with another last question."""
    turns = list(row.turns)
    turns[-2] = replace(turns[-2], text=turns[-2].text + " And why?")
    return replace(row, id=f"{row.id} again", turns=tuple(turns))


@pytest.mark.parametrize("name", NAMES)
def test_batched_answers_equal_single_ones(family, name):
    """Eight greedy tokens of every row and of a second question of each: all in one batch, and each alone by ``generate``.

    Families that take packs are asked in one; for the others the reason is the table's.
    """
    one = family(name)
    together = [row for first in batches(name, one.rows)[0] for row in (first, asked_otherwise(first))]
    told = []
    with greedy(one.model, one.encoder, max_new_tokens=8, share=False) as generator:
        alone = [generator.answer([row], device=CPU)[0] for row in together]
    with greedy(one.model, one.encoder, max_new_tokens=8, told=told.append) as generator:
        assert generator.answer(together, device=CPU) == alone
    assert bool(told) == (name not in PACKED) and all(packing.refusal(one.model) in line for line in told)
    assert len({answer["text"] for answer in alone}) > 1
    table.cell(name, "generation", "equal")


@pytest.mark.parametrize("name", NAMES)
def test_options_are_compared_as_rows_of_their_own(family, name, monkeypatch):
    """Scores of options of all rows in one batch, but for what a row's options have in common, against a pass per option."""
    one, options, seen, own = family(name), ("A", "B", "Aye"), {}, Choosing._chosen

    def kept(self, row, texts, scores, filters):
        seen[row.id] = torch.tensor(scores)
        return own(self, row, texts, scores, filters)

    monkeypatch.setattr(Choosing, "_chosen", kept)
    with greedy(one.model, one.encoder, max_new_tokens=8) as generator:
        together = batches(name, one.rows)[0]
        Choosing(generator, one.model, one.encoder, lambda row: options).answer(together, device="cpu")
        for row in together:
            alone = []
            for text in options:
                answered = replace(row, turns=(*row.turns[:-1], replace(row.turns[-1], text=text)))
                sample, first = one.encoder.encode(answered), len(one.encoder.prompt(row).input_ids_T)
                batch = collate([sample], stream="t", pad_id=one.encoder.pad_id)
                logps = logits(one.model, batch)[0, first - 1 : -1].log_softmax(-1)
                alone.append(float(logps.gather(1, sample.input_ids_T[first:, None]).sum()))
            torch.testing.assert_close(
                seen[row.id] - seen[row.id][0], torch.tensor(alone) - alone[0], atol=2e-4, rtol=0
            )


@pytest.mark.parametrize("name", [n for n in NAMES if n not in LIKE_COUNTS])
def test_a_text_batch_with_a_ghost_keeps_its_outputs(family, name):
    """What ranks append so that all of them run the tower; its row teaches nothing and changes nothing."""
    one = family(name)
    text = collate([one.encoder.encode(one.rows[0])], stream="t", pad_id=one.encoder.pad_id)
    more = Ghost(one.encoder.encode(one.rows[2]), pad_id=one.encoder.pad_id)(text)
    assert more.target_count == text.target_count and len(more.input_ids_BT) == 2
    found = logits(one.model, more)[:1, : text.input_ids_BT.shape[1]]
    assert (found - logits(one.model, text)).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_packs_give_the_rows_losses_and_gradients(family, name):
    """Text, one picture, several, and a second question of one: as one sequence, or the reason why not."""
    one = family(name)
    reason = packing.refusal(one.model)
    assert (name in PACKED) == (not reason), reason
    table.cell(name, "packs", reason or "equal")
    if reason:
        return
    batch = like_probe(
        collate([one.encoder.encode(row) for row in one.rows[::-1]], stream="t", pad_id=one.encoder.pad_id)
    )
    pack = pack_rows(batch, whole=False)
    assert any(run.shared for run in pack.runs) and len(pack) < batch.attention_BT.sum() - len(batch.rows)
    weight = one.model.get_input_embeddings().weight.requires_grad_(True)
    packing.switch_on(one.model)
    found = []
    try:
        for layout in (None, pack):
            out = run_model(one.model, batch, device=CPU, pack=layout)
            found.append((out.nll_N.detach(), torch.autograd.grad(out.nll_N.sum(), weight)[0]))
    finally:
        packing.switch_off(one.model)
        weight.requires_grad_(False)
    assert (found[0][0] - found[1][0]).abs().max() < 1e-4
    assert (found[0][1] - found[1][1]).norm() < 1e-5 * found[0][1].norm()


REFUSED = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "mllama"}
"""Their towers are called with more than pictures."""


@pytest.mark.parametrize("name", NAMES)
def test_kept_features_give_the_rows_losses(family, name, tmp_path, monkeypatch):
    """One picture, several, text alone: computed, then found, then the tower itself again; or the reason why not."""
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path))
    one, told = family(name), []
    batch = collate([one.encoder.encode(row) for row in one.rows], stream="t", pad_id=one.encoder.pad_id)
    (tower,) = outermost(one.model, "tower")
    with torch.no_grad():
        plain = run_model(one.model, batch, device=CPU).nll_N
        keep_features(tower, 1 << 20, told=told.append)
        kept = tower.forward
        try:
            first, again = (run_model(one.model, batch, device=CPU).nll_N for _ in range(2))
        finally:
            del tower.forward
    assert (name in REFUSED) == bool(told), told
    assert torch.equal(first, again) and (first - plain).abs().max() < 1e-4
    if not told:
        assert kept.found and kept.computed == len(list(tmp_path.rglob("*.safetensors")))
    table.cell(name, "vision cache", told[0].partition(": ")[2].replace("the tower", "its tower") if told else "equal")


LINEARS = {  # linear modules of the language model: layers x (attention, MLP), counted by hand from the configs
    name: 14 for name in NAMES
} | {"mllama": 21, "qwen3_vl": 21}


@pytest.mark.parametrize("name", NAMES)
def test_lora_goes_to_the_language_linears_only(family, name):
    """2 layers x (q, k, v, o, gate, up, down); Mllama has 3 layers, of which one attends to pictures, Qwen3-VL 3."""
    one = family(name)
    targets = lora_targets(one.model, "language-linear")
    assert len(targets) == LINEARS[name]
    assert {group_of(target) for target in targets} == {"language"}
    assert all(isinstance(one.model.get_submodule(target), nn.Linear) for target in targets)
    assert not any(part in target for target in targets for part in ("vision", "visual", "lm_head"))
    table.cell(name, "LoRA", f"{len(targets)} linears")


PROJECTORS = {
    "qwen2_vl": {"model.visual.merger"},
    "qwen2_5_vl": {"model.visual.merger"},
    "qwen3_vl": {"model.visual.merger", "model.visual.deepstack_merger_list"},
    "smolvlm": {"model.connector"},
    "idefics3": {"model.connector"},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_projector_is_found_with_all_its_parts(family, name):
    """Every tensor between tower and language model, none of either."""
    one = family(name)
    wanted = PROJECTORS.get(name, {"model.multi_modal_projector"})
    found = {n for n in adapters.candidates(one.model, AdapterConfig(kind="lora", also_train=["projector"]))}
    found = {n for n in found if ".lora_" not in n}
    assert found == {n for n, _ in one.model.named_parameters() if n.startswith(tuple(f"{w}." for w in wanted))}
    for part in wanted:
        assert any(n.startswith(part) for n in found), part
    table.cell(name, "projector", ", ".join(sorted(part.removeprefix("model.") for part in wanted)))


def test_the_table_has_no_hole():
    """Every family, every property; a cell that no test wrote stays a dash."""
    cells = table.read()
    assert set(cells) == {(name, column) for name in NAMES for column in table.COLUMNS}
    assert set(table.TITLES) == set(NAMES) and "-" not in cells.values()
