"""Wrong boxes: far enough from the right one, written like it."""

import random

import pytest

from mcit.data.asd.boxes import decimals, overlap, read, write, wrong_boxes


def test_overlap():
    """[0,0,1,1] and [0,0,1,.5] share half: 0.5. [.1,.1,.5,.5] and [.3,.1,.7,.5]: 0.08 of 0.24 = 1/3."""
    assert overlap((0, 0, 1, 1), (0, 0, 1, 0.5)) == 0.5
    assert overlap((0.1, 0.1, 0.5, 0.5), (0.3, 0.1, 0.7, 0.5)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 0.2, 0.2), (0.5, 0.5, 1, 1)) == 0


def test_reading_and_writing_keep_decimals():
    assert read("[0.15, .2, 1, 0.36]") == (0.15, 0.2, 1.0, 0.36)
    assert decimals("[0.15, .2, 1, 0.363]") == 3 and decimals("[0, 0, 1, 1]") == 0
    assert write((0.15, 0.2, 1, 0.36), 2) == "[0.15, 0.20, 1.00, 0.36]"


@pytest.mark.parametrize("gold", ["[0.10, 0.20, 0.35, 0.60]", "[0.00, 0.00, 1.00, 1.00]", "[0.05, 0.05, 0.95, 0.90]"])
def test_drawn_boxes_lie_inside_and_apart(gold):
    """Boxes as large as the picture find room after they were made smaller: area below 0.3 of the right one's."""
    for seed in range(20):
        found = wrong_boxes(gold, [], 3, random.Random(seed))
        assert found is not None and len(set(found)) == 3
        for text in found:
            x1, y1, x2, y2 = read(text)
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 and overlap(read(text), read(gold)) < 0.3
            assert decimals(text) == 2


def test_small_boxes_keep_their_size():
    found = wrong_boxes("[0.10, 0.20, 0.30, 0.50]", [], 3, random.Random(1))
    assert found is not None
    sizes = {(round(b[2] - b[0], 2), round(b[3] - b[1], 2)) for b in map(read, found)}
    assert all(abs(w - 0.2) <= 0.011 and abs(h - 0.3) <= 0.011 for w, h in sizes)


def test_annotated_boxes_come_first_unless_they_overlap():
    gold, near, far = "[0.1, 0.1, 0.5, 0.5]", "[0.1, 0.1, 0.5, 0.4]", "[0.6, 0.6, 0.9, 0.9]"
    for seed in range(10):
        found = wrong_boxes(gold, [gold, near, far], 3, random.Random(seed))
        assert found is not None and found[0] == far and near not in found and gold not in found


def test_no_room_after_rounding():
    """With whole numbers only [0, 0, 1, 1] is a box, and it is the right one."""
    assert wrong_boxes("[0, 0, 1, 1]", [], 3, random.Random(0)) is None


@pytest.mark.parametrize("gold", ["[100, 200, 300, 400]", "[0.1, 0.2, 1.5, 0.4]", "[0.5, 0.1, 0.2, 0.9]"])
def test_a_box_that_is_not_between_0_and_1_has_no_wrong_ones(gold):
    """Pixels, an edge outside, and corners the wrong way round: nothing drawn between 0 and 1 would be plausible."""
    assert wrong_boxes(gold, ["[0.1, 0.1, 0.2, 0.2]"], 1, random.Random(0)) is None
