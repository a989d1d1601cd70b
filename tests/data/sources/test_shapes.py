"""Generated pictures: deterministic, disjoint between splits, answers that follow from the picture."""

import pytest
from PIL import Image

from mcit.core.files import sha256_file
from mcit.data.sources.shapes import COLOURS, GENERATORS, PIXELS
from tests.fakes.rows import read_values


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_rows_are_sound_and_repeatable(name, tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    a, b = (list(GENERATORS[name]("train", 60, 3, tmp_path / folder)) for folder in "ab")
    assert a == b
    assert all(sha256_file(tmp_path / "a" / r["image"]) == sha256_file(tmp_path / "b" / r["image"]) for r in a)
    read, problems = read_values(a)
    assert not problems and len(read) == 60
    answers = [r.answer for r in read]
    assert max(answers.count(x) for x in set(answers)) <= 0.6 * len(answers)
    for r in read:
        image = Image.open(tmp_path / "a" / r.images[0])
        assert image.size == (PIXELS, PIXELS) and image.mode == "RGB"
        colours = {colour for _, colour in image.getcolors()}
        shown = [word for word, rgb in COLOURS.items() if rgb in colours]
        assert len(shown) == 1
        if r.style == "word":
            assert r.answer == shown[0]
        if r.style == "yes_no":
            assert (r.answer == "yes") == (f" {shown[0]}?" in r.question)
        if r.style == "letter":
            assert r.meta["choices"]["ABC".index(r.answer)] == r.meta["class"]


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_no_test_picture_is_seen_in_training(name, tmp_path):
    seen = {}
    for split in ("train", "test", "validation"):
        (tmp_path / split).mkdir()
        found = list(GENERATORS[name](split, 80, 1, tmp_path / split))
        seen[split] = {sha256_file(tmp_path / split / r["image"]) for r in found}
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]


def test_seed_matters(tmp_path):
    one, two = (list(GENERATORS["shapes-word"]("train", 20, seed, tmp_path)) for seed in (1, 2))
    assert one != two
