"""Checks over all rows: the same as comparing every row with every other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcit.data import gathered as module
from mcit.data.checks import check_ids, check_overlap, check_pictures
from mcit.data.gathered import Gathered, questions
from mcit.data.pictures import PictureList
from tests.fakes.rows import picture, row


def gathered(folder, name, rows, root):
    found = Gathered(folder / f"{name}.jsonl", {str(root): "0"})
    for one in rows:
        found.add(one)
    found.close()
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, colour in (("a.png", (1, 2, 3)), ("same.png", (1, 2, 3)), ("b.png", (9, 9, 9))):
        picture(folder, name, colour=colour)
    return folder


CONTENT = {"a.png": "A", "same.png": "A", "b.png": "B"}
ASKED = st.tuples(
    st.sampled_from("12345"),
    st.lists(st.sampled_from(["One?", "Two?", "Three?"]), min_size=1, max_size=2),
    st.lists(st.sampled_from(list(CONTENT)), max_size=2),
)


def made(values, root, prefix):
    out = []
    for number, (identity, asked, pictures) in enumerate(values):
        turns = [
            text for question in asked for text in ("<image> " * len(pictures) * (question is asked[0]) + question, "a")
        ]
        settings_ = {"images": tuple(pictures), "root": root, "id": identity, "source": f"{prefix}.json:{number + 1}"}
        out.append(row(*turns, **settings_))
    return out


@settings(max_examples=60, deadline=None)
@given(train=st.lists(ASKED, max_size=6), test=st.lists(ASKED, max_size=4), narrow=st.booleans())
def test_equal_to_comparing_all(images, tmp_path_factory, train, test, narrow):
    """Also where hashes collide: with `narrow` every id and every question has the same."""
    folder = tmp_path_factory.mktemp("checks")
    with pytest.MonkeyPatch.context() as patch:
        if narrow:
            patch.setattr(module, "hash", lambda value: 1, raising=False)
            patch.setattr(module, "picture_key", lambda one, image: hash((one.root, image)))
        rows, tested = made(train, images, "train"), made(test, images, "test")
        parts = {"train": gathered(folder, "train", rows, images), "test": gathered(folder, "test", tested, images)}
    summary = []
    assert not list(check_pictures(parts, PictureList(folder / "p", {str(images): "0"}), summary))
    bad = [p.where for p in check_ids(parts)]
    firsts = {name: {r.id: r for r in reversed(of)} for name, of in (("train", rows), ("test", tested))}
    expected = [r.where for name, of in (("train", rows), ("test", tested)) for r in of if firsts[name][r.id] is not r]
    assert bad == expected
    bad = {p.where for p in check_overlap([parts["train"]], parts["test"], summary)}
    left = {name: [r for r in of if firsts[name][r.id] is r] for name, of in (("train", rows), ("test", tested))}
    asked = {(tuple(CONTENT[i] for i in r.images), q) for r in left["test"] for q in questions(r)}
    assert bad == {
        r.where for r in left["train"] for q in questions(r) if (tuple(CONTENT[i] for i in r.images), q) in asked
    }


def test_many_missing_pictures_are_summed_up(images, tmp_path):
    names = [f"GQA/{k}.jpg" for k in range(4)] + ["OCR/1.jpg", "a.png"]
    rows = [row("<image>q", "a", images=(n,), root=images, id=n, task="gqa") for n in names]
    part = gathered(tmp_path, "train", rows, images)
    summary = []
    bad = list(check_pictures({"train": part}, PictureList(tmp_path / "p", {str(images): "0"}), summary))
    assert len(bad) == 5 and [r.id for r in part.rows] == ["a.png"]
    (said,) = summary
    assert said.where == "task gqa" and f"5 of 6 rows lack a picture, below {images}: GQA 4, OCR 1" in said.what


def test_a_file_of_the_other_split_is_told(images, tmp_path):
    rows = [row(f"q{k}", "a", id=f"r{k}", root=images) for k in range(6)]
    train, test = (gathered(tmp_path, name, rows, images) for name in ("train", "test"))
    summary = []
    assert len(list(check_overlap([train], test, summary))) == 6
    assert summary[0].what == "6 of 6 rows ask what the test asks: is one file the other split's?"
