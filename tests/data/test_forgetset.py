"""Rows beside those to forget: paired by id or from columns, held out; what is missing is named."""

import dataclasses

import pytest

from mcit.core.errors import DataError
from mcit.core.types import Row, Turn
from mcit.data.forgetset import answered, decoupled, held_out, made_decoupled, to_forget, with_alternates
from mcit.data.overlap import asked


def row(number, *, answer="dog", question="<image>\nwhat?", image="a.png", root="/r", **meta):
    turns = (Turn("user", question), Turn("assistant", answer))
    return Row(str(number), (image,), turns, "t", f"t.json:{number}", meta=meta, root=root)


def test_rows_held_out_are_not_forgotten():
    rows = [row(0), row(1, holdout=True), row(2)]
    assert [r.id for r in to_forget(rows)] == ["0", "2"] and [r.id for r in held_out(rows)] == ["1"]
    assert to_forget(rows[:1]) == rows[:1] and not len(held_out(rows[:1]))


def test_alternates_by_id_and_by_column():
    """The pictures and ids of the rows to forget, the answers of the others, in the order of the rows to forget."""
    rows = [row(0), row(1, alternate="no idea")]
    by_id = with_alternates(rows, [row(1, answer="cat", image="x.png"), row(0, answer="owl", question="<image> what?")])
    assert [(r.id, r.answer, r.images) for r in by_id] == [("0", "owl", ("a.png",)), ("1", "cat", ("a.png",))]
    assert with_alternates(rows[1:], [])[0].answer == "no idea"


def test_every_row_without_an_alternate_is_named():
    with pytest.raises(DataError) as error:
        with_alternates([row(n) for n in range(30)], [row(40)])
    found = error.value.problems
    assert len(found) == 21 and found[0].where == "t.json:0:0" and "no alternate answer" in found[0].what
    assert "10 more rows" in found[-1].what


def test_decoupled_rows_ask_the_same_about_another_picture(tmp_path):
    (tmp_path / "b.png").write_bytes(b"p")
    other = row(0, answer="a cup", image="c.png", root="/s")
    (made,) = decoupled([row(0)], [other])
    assert (made.images, made.root, made.answer, made.task) == (("c.png",), "/s", "a cup", "t")
    column = row(0, root=str(tmp_path), decouple={"image": "b.png", "answer": "a cup"})
    (made,) = decoupled([column], [])
    assert (made.images, made.answer, asked(made)) == (("b.png",), "a cup", asked(column))


def test_what_cannot_be_decoupled(tmp_path):
    (tmp_path / "a.png").write_bytes(b"p")
    here = {"root": str(tmp_path)}
    cases = {
        "no harmless picture": (row(0), []),
        "is the picture to forget": (row(0), [row(0)]),
        "asks something else": (row(0), [row(0, question="<image>\nwho?", image="c.png")]),
        "no image with an answer": (row(0, decouple={"image": "a.png"}), []),
        "does not exist": (row(0, decouple={"image": "b.png", "answer": "x"}, **here), []),
        "leaves its root": (row(0, decouple={"image": "../b.png", "answer": "x"}, **here), []),
    }
    for words, (one, given) in cases.items():
        with pytest.raises(DataError, match=words):
            decoupled([one], given)


def test_ids_that_say_nothing_are_refused():
    with pytest.raises(DataError, match="is also that of"):
        with_alternates([row(0)], [row(0), row(0)])
    with pytest.raises(DataError, match="share ids"):
        with_alternates([row(0), row(0)], [row(0)])


def test_one_answer_cannot_replace_several():
    two = dataclasses.replace(row(0), turns=row(0).turns * 2)
    with pytest.raises(DataError, match="several answers"):
        answered(two, "x")


RETAINED = [
    row(f"r{n}", answer=a, image=f"{a}{n}.png", question="<image>\nwho?", root="/s") for n, a in enumerate("xyx")
]


def made(rows, answer, **settings):
    return made_decoupled(rows, RETAINED, answer, **{"category": "answer", "tries": 2, "seed": 1, **settings})


@pytest.fixture
def pictures(monkeypatch):
    """Files that are not there: the path stands for the content."""
    monkeypatch.setattr("mcit.data.overlap._picture", str)


def test_pictures_to_forget_are_none_to_ask_about(pictures):
    """Whatever else is asked about them: the start model would say what is to be forgotten."""
    rows = [row(0, image="y1.png", answer="x", root="/s")]
    with pytest.raises(DataError, match="that are not to be forgotten"):
        made(rows, lambda asked: ["a"] * len(asked))
    asked_of = []
    made([row(0, image="y1.png", answer="x", root="/t")], lambda asked: asked_of.extend(asked) or ["a"] * len(asked))
    assert {one.root for one in asked_of} == {"/s"}, "another picture of that name"


def test_harmless_rows_are_made_from_retained_pictures_of_another_category(pictures):
    """The question stays, the picture is another one, the answer is what the model says; the same with the same seed."""
    rows = [row(n, answer="x") for n in range(3)]
    asked_of = []

    def answer(asked):
        asked_of.extend(asked)
        return [f"I see {one.images[0]}." for one in asked]

    found = made(rows, answer)
    assert {r.images for r in found} == {("y1.png",)} and {r.root for r in found} == {"/s"}
    assert [r.id for r in found] == ["0", "1", "2"] and {r.answer for r in found} == {"I see y1.png."}
    assert len(asked_of) == 6 and found == made(rows, answer) and asked(found[0]) == asked(rows[0])


def test_refused_pictures_give_way_to_others(pictures):
    """The second try where the first is empty; a row with none takes that of another; all empty is an error."""
    rows = [row(n, answer="z") for n in range(2)]
    assert [r.answer for r in made(rows, lambda asked: ["", "two", "", ""])] == ["two", "two"]
    with pytest.raises(DataError, match="refuses every question"):
        made(rows, lambda asked: [""] * len(asked))


def test_no_picture_of_another_category(pictures):
    with pytest.raises(DataError, match="no retained row has 1 picture"):
        made([row(0)], lambda asked: ["a"] * len(asked), category="task")
    with pytest.raises(DataError, match="no meta 'kind'"):
        made([row(0)], lambda asked: ["a"] * len(asked), category="meta.kind")
    assert made([row(0, image="k/a.png")], lambda asked: ["a"] * len(asked), category="folder")[0].answer == "a"
