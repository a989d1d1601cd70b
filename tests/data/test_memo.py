"""What was decoded, processed and tokenised once is not again, and is the same."""

import copy
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from mcit.core.errors import DataError
from mcit.core.types import Encoding
from mcit.data import images, memo
from mcit.data.encode import Encoder
from mcit.data.memo import _ENTRY, Memo, Store
from tests.fakes.processors import make_processor
from tests.fakes.rows import picture, row


def test_a_store_is_bounded():
    store = Store(10 * (100 + _ENTRY))
    for k in range(50):
        store.put(k, f"v{k}", 100)
        assert store.held == min(k + 1, 10) * (100 + _ENTRY) and len(store) == min(k + 1, 10)
    kept = [k for k in range(50) if store.get(k) is not None]
    assert [store.get(k) for k in kept] == [f"v{k}" for k in kept] and len(kept) == 10
    assert kept != list(range(40, 50))  # at random: rows that come round in turns find some of themselves
    store.put("large", "v", 100_000)
    store.put(kept[0], "other", 1)
    assert store.get("large") is None and store.get(kept[0]) == f"v{kept[0]}"
    store.clear()
    assert (len(store), store.held, store.get(kept[0])) == (0, 0, None)


@pytest.fixture
def work(monkeypatch):
    """How often pictures were decoded."""
    decoded, own = [], images.open_image
    monkeypatch.setattr(images, "open_image", lambda path, **kwargs: decoded.append(path.name) or own(path, **kwargs))
    return decoded


class Counted:
    """Encoders with and without a memo, and what the one with it did."""

    def __init__(self):
        processor = make_processor("llava")
        self.processed, self.tokenised = [], []
        own, tokenise = processor.image_processor, Encoder._tokenise

        class Kind(type(own)):
            def __call__(kind, pictures, **kwargs):
                self.processed.append(len(pictures))
                return super().__call__(pictures, **kwargs)

        own.__class__ = Kind
        self.memo = Memo()
        self.encoder = Encoder(processor, memo=self.memo)
        self.plain = Encoder(make_processor("llava"))

        def counting(text, asked):
            self.tokenised.append(asked.id)
            return tokenise(self.encoder, text, asked)

        self.encoder._tokenise = counting


def same(one, other):
    assert one.row == other.row and one.token_keys == other.token_keys and one.row_keys == other.row_keys
    assert torch.equal(one.input_ids_T, other.input_ids_T) and torch.equal(one.labels_T, other.labels_T)
    assert one.pixels.keys() == other.pixels.keys()
    assert all(torch.equal(value, other.pixels[name]) for name, value in one.pixels.items())
    assert (one.image_T is None) == (other.image_T is None)
    assert one.image_T is None or torch.equal(one.image_T, other.image_T)


def test_rows_of_a_picture_decode_it_once_and_come_again_for_nothing(tmp_path, work):
    names = [picture(tmp_path, f"{k}.png", size=(40 + k, 30), colour=(90 * k, 9, 9)) for k in range(2)]
    padded = Encoding(pad_image=True)
    rows = [
        row("<image>\nWhat?", "this", id="a", images=(names[0],), root=tmp_path),
        row("<image>\nWhere?", "there", id="b", images=(names[0],), root=tmp_path),
        row("<image>\n<image>\nBoth?", "yes", id="c", images=tuple(names), root=tmp_path),
        row("<image>\nWhat?", "this", id="d", images=(names[0],), root=tmp_path, encoding=padded),
        row("Hello", "you", id="e"),
    ]
    made = Counted()
    first = [made.encoder.encode(one) for one in rows]
    # the first row with a picture is encoded twice, to see whether the processor can be trusted
    assert work == ["0.png"] * 2 + ["0.png", "1.png", "0.png"] and len(made.processed) == 5
    assert made.tokenised == ["a", "a", "b", "c", "d", "e"]
    again = [made.encoder.encode(one) for one in rows]
    prompts = [made.encoder.prompt(one) for one in rows]
    assert len(work) == len(made.processed) == 5 and made.tokenised[6:] == ["a", "b", "c", "d", "e"]
    for one, sample, later, prompt in zip(rows, first, again, prompts, strict=True):
        same(sample, made.plain.encode(one))
        same(later, sample)
        same(prompt, made.plain.prompt(one))
    assert again[0].pixels["pixel_values"] is again[1].pixels["pixel_values"]  # once for all rows of a picture
    assert not made.encoder.notes


def test_picture_files_are_looked_at_once_a_row(tmp_path, monkeypatch):
    looked, own = [], memo.pictures_key
    monkeypatch.setattr(memo, "pictures_key", lambda asked: looked.append(asked.id) or own(asked))
    made, name = Counted(), picture(tmp_path)
    rows = [row("<image>\nWhat?", "this", id=id, images=(name,), root=tmp_path) for id in "ab"]
    for one in rows:
        made.encoder.encode(one)
        made.encoder.prompt(one)
    assert looked == ["a", "a", "b", "b"]


def test_a_row_is_what_it_says_and_not_its_name(tmp_path):
    made = Counted()
    one = row("Hello", "you", id="a")
    made.encoder.encode(one)
    other = made.encoder.encode(row("Hello", "you", id="b", task="other"))
    assert other.row.id == "b" and made.tokenised == ["a"]
    made.encoder.encode(row("Hello", "they", id="a"))
    assert made.tokenised == ["a", "a"]


def test_what_a_processor_takes_out_of_its_pictures_is_there_again(tmp_path):
    """As Mllama's does with the number of tiles."""
    memo, asked = Memo(), row("<image>\nWhat?", images=(picture(tmp_path),), root=tmp_path)
    calls = []

    def process():
        calls.append(1)
        return {"num_tiles": [[1]], "pixel_values": torch.zeros(2)}, ["<tile>"]

    for _ in range(3):
        with memo.showing(asked):
            values, texts = memo.processed(process)
        assert values.pop("num_tiles") == [[1]] and texts.pop() == "<tile>"
    assert len(calls) == 1


def test_another_picture_of_that_name_is_seen(tmp_path):
    made = Counted()
    asked = row("<image>\nWhat?", "this", images=(picture(tmp_path),), root=tmp_path)
    before = made.encoder.encode(asked)
    Image.new("RGB", (40, 30), (0, 200, 0)).save(tmp_path / "a.png")
    os.utime(tmp_path / "a.png", ns=(1, 1))
    after = made.encoder.encode(asked)
    assert not torch.equal(before.pixels["pixel_values"], after.pixels["pixel_values"])
    same(after, made.plain.encode(asked))


def test_a_row_that_is_too_long_stays_so_and_a_missing_picture_is_named(tmp_path):
    encoder = Encoder(make_processor("llava"), max_length=8, memo=Memo())
    for _ in range(2):
        with pytest.raises(DataError, match="the limit is 8"):
            encoder.encode(row("a long question", "and a long answer"))
        with pytest.raises(DataError, match="does not exist"):
            encoder.encode(row("<image>\nWhat?", "this", images=("gone.png",), root=tmp_path))
    assert len(encoder.without_limit().encode(row("a long question", "and a long answer")).input_ids_T) > 8


def test_a_processor_that_draws_is_named_and_nothing_kept(tmp_path):
    processor = make_processor("llava")
    own = processor.image_processor

    class Draws(type(own)):
        def __call__(self, *args, **kwargs):
            out = super().__call__(*args, **kwargs)
            out["pixel_values"] = [value + torch.rand(1).numpy() for value in out["pixel_values"]]
            return out

    own.__class__ = Draws
    memo = Memo()
    encoder = Encoder(processor, memo=memo)
    asked = row("<image>\nWhat?", "this", images=(picture(tmp_path),), root=tmp_path)
    one, other = encoder.encode(asked), encoder.encode(asked)
    assert not torch.equal(one.pixels["pixel_values"], other.pixels["pixel_values"])
    assert len(memo.store) == 0
    (note,) = encoder.notes
    assert "LlavaProcessor gives other values for the same row" in note


def test_copies_in_threads_share_it(tmp_path):
    names = [picture(tmp_path, f"{k}.png", colour=(20 * k, 9, 9)) for k in range(4)]
    rows = [row("<image>\nWhat?", f"answer {k}", images=(names[k % 4],), root=tmp_path) for k in range(16)]
    memo = Memo()
    encoder = Encoder(make_processor("llava"), memo=memo)
    copies = [copy.deepcopy(encoder) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(lambda c, part: [c.encode(one) for one in part], c, rows) for c in copies]
        found = [job.result() for job in jobs]
    plain = Encoder(make_processor("llava"))
    for one, a, b in zip(rows, *found, strict=True):
        same(a, plain.encode(one))
        same(b, a)
    held = len(memo.store)
    encoder.encode(rows[3])
    assert len(memo.store) == held
