"""Rules of CoIN's data sets."""

import random

from mcit.data.asd.cells import CELLS, Corpus, contains, different, find_cells
from mcit.data.asd.exchange import exchanges_of
from tests.fakes.rows import row

DRAW = random.Random(0)


def corpus(rows, native="short", within=""):
    return Corpus(rows, [exchanges_of(r, native=native) for r in rows], within)


def apply(cells, style, rows, number=0, native="short", within="", seed=0):
    all_rows = corpus(rows, native, within)
    return CELLS[cells][style](rows[number], all_rows.exchanges[number][0], all_rows, random.Random(seed))


def named(*names, **fields):
    return [row("What is it?", name, id=name, style="name", meta={"class": name, **fields}) for name in names]


def test_a_choice_between_yes_and_no_is_not_proposed():
    """The card leaves yes/no rows out of `yn`: "Is the correct answer "no"?" could be answered without the picture."""
    rows = [row("Is 2 even?\nA. yes\nB. no", "A")]
    assert apply("choices", "yn", rows, native="mcq") is None
    assert apply("choices", "short", rows, native="mcq").text == "yes"


def test_scienceqa_choices():
    rows = [row("Which?\nA. iron\nB. wood\nC. salt", "A", style="letter")]
    wrong = {apply("choices", "yn", rows, native="mcq", seed=k).distractors[0] for k in range(20)}
    assert wrong == {"wood", "salt"}
    assert apply("choices", "short", rows, native="mcq").text == "iron"
    assert set(CELLS["choices"]) == {"yn", "short"}


def test_imagenet_classes_are_drawn_from_the_others():
    rows = named("cat", "tabby cat", "dog", "owl", "rat", "cow")
    seen = [apply("classes", "mcq", rows, seed=k).distractors for k in range(200)]
    assert all(len(set(wrong)) == 3 and "cat" not in wrong and "tabby cat" not in wrong for wrong in seen)
    counts = {name: sum(name in wrong for wrong in seen) for name in ("dog", "owl", "rat", "cow")}
    assert all(110 < count < 190 for count in counts.values())  # 150 expected, standard deviation 6
    assert len(apply("classes", "yn", rows).distractors) == 1


def test_too_few_classes_and_yes_no_rows():
    assert apply("classes", "mcq", named("cat", "dog", "owl")) is None
    assert apply("classes", "yn", named("cat")) is None
    assert apply("classes", "yn", named("yes", "no", "cat")) is None


def test_the_harder_variant_stays_in_the_group_while_it_can():
    rows = named("cat", "dog", "cow", "rat", group="animal") + named("car", "bus", "van", group="vehicle")
    assert set(apply("classes", "mcq", rows, within="group").distractors) == {"dog", "cow", "rat"}
    assert len(set(apply("classes", "mcq", rows, number=4, within="group").distractors)) == 3
    assert apply("classes", "yn", rows, number=4, within="group").distractors[0] in ("bus", "van")


def test_grounding_boxes_of_the_same_picture_first():
    boxes = [
        "[0.10, 0.10, 0.30, 0.30]",
        "[0.60, 0.60, 0.90, 0.90]",
        "[0.10, 0.60, 0.30, 0.90]",
        "[0.60, 0.10, 0.90, 0.30]",
    ]
    rows = [row(f"<image>\nWhere is {k}?", box, images=("a",), id=str(k)) for k, box in enumerate(boxes)]
    rows.append(row("<image>\nWhere?", "[0.40, 0.40, 0.50, 0.50]", images=("b",), id="other"))
    assert set(apply("boxes", "mcq", rows).distractors) == set(boxes[1:])
    assert apply("boxes", "yn", [row("Where?", "left")]) is None
    assert set(CELLS["boxes"]) == {"yn", "mcq"}  # descriptions need a model


def test_rules_follow_from_the_rows():
    assert find_cells(corpus([row("Which?\nA. x\nB. y", "A")], native="mcq"), "mcq") == "choices"
    assert find_cells(corpus([row("Where?", "[0.1, 0.1, 0.2, 0.2]")]), "short") == "boxes"
    assert find_cells(corpus(named("cat", "dog")), "short") == "classes"
    assert find_cells(corpus([row("What?", "cat")]), "short") == "none"
    assert find_cells(corpus([row("Is it?", "yes")], native="yn"), "yn") == "none"


def test_answers_that_contain_each_other():
    assert contains("Cat", "tabby cat.") and contains("tabby-cat", "cat") and not contains("cat", "category")
    assert different("cat", ["Cat", "a cat"], 1, DRAW) is None
    assert different("cat", ["red dog", "dog", "owl"], 2, random.Random(0)) is not None
    assert different("cat", ["red dog", "dog"], 2, random.Random(0)) is None
