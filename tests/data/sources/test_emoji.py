"""The bundle is what the tasks and the alignment mix rely on: disjoint roles, readable pictures, seeded rendering."""

import hashlib
import random
from collections import Counter

import pytest

from mcit.data.sources.emoji import ASSETS, PIXELS, apart, emoji, pair, picture_bytes, single

ROLES = {"base", "naming", "lowvision", "kind-train", "kind-test"}


def test_roles_are_disjoint_by_name_and_by_picture():
    everything = emoji()
    assert {item.role for item in everything} == ROLES

    def drawing(e):
        return hashlib.sha256(picture_bytes(e.short_name)).digest()

    for key in (lambda e: e.short_name, lambda e: e.name, drawing):
        counts = Counter(key(item) for item in everything)
        assert max(counts.values()) == 1


def test_task_roles_have_the_sizes_the_recipes_need():
    counts = Counter(item.role for item in emoji())
    assert counts["naming"] == 30 and 20 <= counts["lowvision"] <= 30 and counts["base"] >= 250
    for role, fewest in (("kind-train", 20), ("kind-test", 12)):
        groups = Counter(item.group for item in emoji(role))
        assert set(groups) == {"animal", "food", "vehicle", "object"} and min(groups.values()) >= fewest
        assert len(set(groups.values())) == 1


def test_base_shares_no_word_with_the_objects_of_tasks():
    """Words that only describe (a light bulb is not a flashlight) are left out on purpose."""
    plain = {"light", "top", "old", "family", "small", "racing", "fast", "ice"}
    words = {role: {w.rstrip("s") for e in emoji(role) for w in e.name.split()} - plain for role in ROLES}
    for role in ROLES - {"base"}:
        assert not words["base"] & words[role], role


def test_every_picture_can_be_drawn():
    for item in emoji():
        assert item.picture.mode == "RGBA" and item.picture.size == (64, 64)
        assert item.picture.getextrema()[3][1] > 200, item


def test_the_bundle_is_small_and_carries_its_licences():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 8_000_000
    assert "Apache License" in (ASSETS / "LICENSE-noto-emoji.txt").read_text()
    assert "MIT License" in (ASSETS / "LICENSE-emoji-data.txt").read_text()


def test_the_object_lies_in_its_box_and_nowhere_else():
    item = emoji("base")[0]
    for seed in range(20):
        image, box = single(item, random.Random(seed))
        assert image.size == (PIXELS, PIXELS) and image.mode == "RGB"
        assert 0 <= box[0] < box[2] <= PIXELS and 0 <= box[1] < box[3] <= PIXELS
        inside = image.crop(box)
        plain = image.copy()
        plain.paste(_ground(image, box), box)
        assert len(plain.getcolors()) == 1 and len(inside.getcolors(100_000)) > 10


def test_rendering_depends_on_the_seed_alone():
    item, other = emoji("base")[3], emoji("base")[4]
    for draw in (lambda seed: single(item, random.Random(seed)), lambda seed: pair((item, other), random.Random(seed))):
        (a, box_a), (b, box_b), (c, _) = draw(1), draw(1), draw(2)
        assert a.tobytes() == b.tobytes() and box_a == box_b and a.tobytes() != c.tobytes()


@pytest.mark.parametrize("seed", range(30))
def test_two_objects_do_not_overlap(seed):
    items = emoji("base")
    image, (one, other) = pair((items[0], items[1]), random.Random(seed))
    assert apart(one, other) and image.size == (PIXELS, PIXELS)
    plain = image.copy()
    for box in (one, other):
        assert len(image.crop(box).getcolors(100_000)) > 10
        plain.paste((0, 0, 0), box)
    assert len(plain.getcolors(100_000)) == 2, "something is drawn outside the boxes"


def _ground(image, box):
    """A colour that is surely ground: a corner outside the box."""
    last = PIXELS - 1
    for x, y in ((0, 0), (last, 0), (0, last), (last, last)):
        if not (box[0] <= x < box[2] and box[1] <= y < box[3]):
            return image.getpixel((x, y))
    raise ValueError("the box covers every corner")
