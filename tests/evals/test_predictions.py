"""Predictions on disk."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcit.core.errors import StateError
from mcit.core.stored import sealed_line, write_sealed
from mcit.core.types import Row, Turn
from mcit.evals import predictions as p


def row(i: int, text: str = "q", images: int = 0, **meta) -> Row:
    turns = (Turn("user", text), Turn("assistant", " gold "))
    return Row(f"r{i}", tuple("x.png" for _ in range(images)), turns, "t", "f:1", style="word", meta=meta)


def line(i: int) -> dict:
    return {"id": f"r{i}", "index": i, "text": "é", "tokens": 1, "truncated": False, "gold": {}, "question": "q"}


def test_batches_group_like_with_like() -> None:
    """Lengths 3, 1, 2 without and 1 with an image, two a batch: the short ones first, images last."""
    rows = [row(0, "abc"), row(1, "a"), row(2, "b", images=1), row(3, "ab")]
    assert p.batches(rows, 2) == [[1, 3], [0, 2]]


@given(st.lists(st.tuples(st.text(max_size=5), st.integers(0, 2)), max_size=20), st.integers(1, 7))
def test_batches_hold_every_row_once(kinds: list, size: int) -> None:
    groups = p.batches([row(i, text, images) for i, (text, images) in enumerate(kinds)], size)
    assert sorted(i for group in groups for i in group) == list(range(len(kinds)))
    assert all(size / 2 <= len(group) <= size for group in groups[:-1])


def test_batches_keep_the_rows_of_a_picture_together() -> None:
    """Pictures with 3, 3 and 4 rows in turn, four a batch: one picture a batch, its rows by length."""
    rows = [row(k, "q" * (5 - k // 3)) for k in range(10)]
    rows = [replace(one, images=(name,)) for one, name in zip(rows, "abcabcabcc", strict=True)]
    assert p.batches(rows, 4) == [[6, 3, 0], [7, 4, 1], [9, 8, 5, 2]]


def test_a_batch_less_than_half_full_is_filled() -> None:
    """One row of a picture, then five of another, six a batch: five would fit nowhere whole but after the one."""
    rows = [replace(row(0), images=(name,)) for name in "abbbbbb"]
    assert [len(group) for group in p.batches(rows, 6)] == [6, 1]


def test_answers_of_another_backend_need_its_record(tmp_path) -> None:
    """The record says in how many answers it differs from the run's own; a damaged one would be lost unseen."""
    p.write_predictions(tmp_path, [line(0)], {"backend": "vllm"})
    record = {"backend": "vllm", "version": "1", "compared": 1, "different": 0, "ids": []}
    write_sealed(tmp_path / p.BACKEND, record)
    assert p.damage(tmp_path) is None and p.made_with(tmp_path) == {"backend": "vllm"}
    text = (tmp_path / p.BACKEND).read_text()
    (tmp_path / p.BACKEND).write_text(text.replace('"compared": 1', '"compared": 2'))
    wrong = p.damage(tmp_path)
    assert wrong is not None and wrong.where == str(tmp_path / p.BACKEND) and p.made_with(tmp_path) is None
    (tmp_path / p.BACKEND).unlink()
    assert p.damage(tmp_path) is not None and p.made_with(tmp_path) is None


def test_gold_holds_what_scorers_need() -> None:
    found = p.gold_of(row(0, choices=["a", "b"], box=[0, 0, 1, 1], answers=["x"], size=[4, 2], other=1))
    kept = {"choices": ["a", "b"], "box": [0, 0, 1, 1], "answers": ["x"], "size": [4, 2]}
    assert found == {"answer": "gold", "style": "word", **kept}
    assert p.gold_of(replace(row(0), images=("a/AI2D_1.png",)))["image"] == "a/AI2D_1.png"


def test_part_file_keeps_whole_batches(tmp_path) -> None:
    groups = [[0, 1], [2]]
    part = p.PartFile(tmp_path, groups, identity="i")
    part.add(0, [line(0), line(1)])
    again = p.PartFile(tmp_path, groups, identity="i")
    assert again.missing == [1]
    again.add(1, [line(2)])
    assert [r["index"] for r in p.PartFile(tmp_path, groups, identity="i").rows()] == [0, 1, 2]


@pytest.mark.parametrize("cut", range(2, 90, 7))
def test_torn_batch_is_made_again(tmp_path, cut: int) -> None:
    groups = [[0, 1], [2]]
    part = p.PartFile(tmp_path, groups, identity="i")
    part.add(0, [line(0), line(1)])
    part.add(1, [line(2)])
    path = tmp_path / p.PART
    path.write_bytes(path.read_bytes()[:-cut])
    again = p.PartFile(tmp_path, groups, identity="i")
    assert again.missing == [1]
    again.add(1, [line(2)])
    assert p.PartFile(tmp_path, groups, identity="i").missing == []


def test_part_of_another_identity_is_dropped(tmp_path) -> None:
    p.PartFile(tmp_path, [[0]], identity="old").add(0, [line(0)])
    assert p.PartFile(tmp_path, [[0]], identity="new").missing == [0]
    assert not (tmp_path / p.PART).exists()


def test_regrouped_or_strange_lines_are_no_batches(tmp_path) -> None:
    p.PartFile(tmp_path, [[0, 1]], identity="i").add(0, [line(0), line(1)])
    assert p.PartFile(tmp_path, [[1, 0]], identity="i").missing == [0]
    with open(tmp_path / p.PART, "a") as file:
        file.write(sealed_line({"batch": 7, "rows": []}) + "\n[1]\n")
    assert p.PartFile(tmp_path, [[0, 1]], identity="i").missing == []


def test_a_damaged_batch_is_made_again(tmp_path) -> None:
    """One letter of an answer, in valid JSON: without a checksum it would end up among the predictions."""
    part = p.PartFile(tmp_path, [[0], [1]], identity="i")
    part.add(0, [line(0)])
    part.add(1, [line(1)])
    path = tmp_path / p.PART
    path.write_text(path.read_text().replace("é", "e", 1))
    again = p.PartFile(tmp_path, [[0], [1]], identity="i")
    assert again.missing == [0] and [r["index"] for r in again.rows()] == [1]
    path.write_text(path.read_text().replace("identity", "identitY", 1))
    assert p.PartFile(tmp_path, [[0], [1]], identity="i").missing == [0, 1]


def test_identity_depends_on_settings_and_rows() -> None:
    one = p.identity_of({"batch": 1}, [row(0)])
    assert one == p.identity_of({"batch": 1}, [row(0)])
    assert len({one, p.identity_of({"batch": 2}, [row(0)]), p.identity_of({"batch": 1}, [row(0, "other")])}) == 3


def test_written_predictions_come_back(tmp_path) -> None:
    p.write_predictions(tmp_path, [line(0), line(1)], {"batch": 2})
    assert p.made_with(tmp_path) == p.recorded_settings(tmp_path) == {"batch": 2}
    assert p.read_predictions(tmp_path) == [line(0), line(1)]
    text = (tmp_path / p.PREDICTIONS).read_text()
    assert text.count("\n") == 2
    assert list(json.loads(text.splitlines()[0])) == sorted(line(0))
    assert "é" in text


def test_edited_predictions_are_named_and_not_taken_for_finished(tmp_path) -> None:
    p.write_predictions(tmp_path, [line(0)], {})
    path = tmp_path / p.PREDICTIONS
    path.write_text(path.read_text().replace("é", "e"))
    assert p.made_with(tmp_path) is None
    with pytest.raises(StateError, match="checksum differs") as caught:
        p.read_predictions(tmp_path)
    assert caught.value.where == p.damage(tmp_path).where == str(path)
    was = json.loads((tmp_path / p.GENERATION).read_text())["sha256"]
    now = hashlib.sha256(path.read_bytes()).hexdigest()  # both are told by their first twelve digits, as everywhere
    assert caught.value.what.endswith(f": sha256 {now[:12]}…, expected {was[:12]}…")


@pytest.mark.parametrize("gone", [p.PREDICTIONS, p.GENERATION])
def test_answers_without_their_record_or_a_record_alone_are_not_finished(tmp_path, gone: str) -> None:
    p.write_predictions(tmp_path, [line(0)], {})
    assert p.damage(tmp_path) is None
    (tmp_path / gone).unlink()
    assert p.made_with(tmp_path) is None
    assert (p.damage(tmp_path) is None) == (gone == p.PREDICTIONS)


@pytest.mark.parametrize("edit", [("sha256", "sha257"), ("settings", "settingZ"), ('"rows": 1', '"rows": 2')])
def test_a_damaged_record_is_named_and_its_answers_are_not_finished(tmp_path, edit) -> None:
    p.write_predictions(tmp_path, [line(0)], {})
    path = tmp_path / p.GENERATION
    path.write_text(path.read_text().replace(*edit))
    assert p.made_with(tmp_path) is None and p.damage(tmp_path).where == str(path)
    for read in (p.recorded_settings, p.read_predictions):
        with pytest.raises(StateError, match="checksum"):
            read(tmp_path)


def test_a_prediction_of_another_version_is_named_by_its_line(tmp_path) -> None:
    p.write_predictions(tmp_path, [line(0), {**line(1), "index": -1}], {})
    with pytest.raises(StateError, match="index") as caught:
        p.read_predictions(tmp_path)
    assert caught.value.where.endswith("predictions.jsonl:2")


def test_missing_predictions(tmp_path) -> None:
    assert p.made_with(tmp_path) is None
    with pytest.raises(StateError, match="no finished predictions"):
        p.read_predictions(tmp_path)
