"""Rows are encoded once for equal rows, pictures and processors; what differs, or is not kept, is encoded anew."""

import dataclasses
import shutil

import pytest
import torch

from mcit.core.errors import PlanError
from mcit.core.types import Encoding, Row, Turn
from mcit.data.encode import Encoder
from mcit.plan import preflight
from mcit.plan.encoded import Encoded, SampleSize
from mcit.plan.plan import make_plan, parse_run
from tests.fakes import recipes
from tests.fakes.bench import TINY, plan_of
from tests.fakes.rows import llava, picture

SIZES = [SampleSize(7, 2, {"pixel_values": ((1, 3, 4, 4), torch.float32), "ids": ((1,), torch.int64)})]


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A plan of a copy of the tiny model; its cache is empty."""
    found = plan_of()
    shutil.copytree(found.model_path, tmp_path / "model")
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path / "cache"))
    return dataclasses.replace(found, model_path=tmp_path / "model")


def splits(folder, text="q", **encoding):
    turns = (Turn("user", f"<image>{text}"), Turn("assistant", "a"))
    return {"train": [Row("a", ("a.png",), turns, "t", "f:1", root=str(folder), encoding=Encoding(**encoding))]}


def test_sizes_are_found_for_equal_rows_pictures_and_processors_alone(plan, tmp_path):
    picture(tmp_path)
    first = Encoded(plan)
    identity = first.identity(splits(tmp_path))
    first.put(identity, splits(tmp_path), SIZES)
    assert Encoded(plan).get(Encoded(plan).identity(splits(tmp_path))) == SIZES
    others = [first.identity(splits(tmp_path, "other")), first.identity(splits(tmp_path, pad_image=True))]
    (plan.model_path / "model.safetensors").touch()
    assert Encoded(plan).identity(splits(tmp_path)) == identity  # weights do not encode
    (plan.model_path / "chat_template.jinja").write_text("other")
    others.append(Encoded(plan).identity(splits(tmp_path)))
    picture(tmp_path, size=(9, 9))
    others.append(first.identity(splits(tmp_path)))
    assert None not in others and [first.get(other) for other in others] == [None] * 4


def test_rows_whose_pictures_changed_or_are_missing_and_code_of_the_models_own_are_not_kept(plan, tmp_path):
    picture(tmp_path)
    first, rows = Encoded(plan), splits(tmp_path)
    identity = first.identity(rows)
    picture(tmp_path, size=(9, 9))
    first.put(identity, rows, SIZES)
    assert first.get(identity) is None
    (tmp_path / "a.png").unlink()
    assert first.identity(rows) is None and first.get(None) is None
    (tmp_path / "elsewhere").mkdir()
    picture(tmp_path / "elsewhere")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert first.identity(splits(tmp_path / "in")) is None  # a link that leads out of the root
    config = plan.config.model_copy(update={"base": plan.config.base.model_copy(update={"trust_remote_code": True})})
    picture(tmp_path)
    assert Encoded(dataclasses.replace(plan, config=config)).identity(rows) is None


def test_an_entry_of_another_form_is_encoded_anew(plan, tmp_path):
    picture(tmp_path)
    first, rows = Encoded(plan), splits(tmp_path)
    first.put(first.identity(rows), rows, SIZES)
    from mcit.plan.encoded import ENTRIES

    for found in ([[1]], [[1, 2, {"a": [[1], "no_such_type"]}]], 3):
        ENTRIES.put(first.identity(rows), found)
        assert first.get(first.identity(rows)) is None


def test_the_second_plan_encodes_nothing_and_a_bad_row_is_named_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    count = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, row: count.append(row.id) or encode(self, row))
    monkeypatch.setattr(preflight, "_SIZES", {})
    good = recipes.rows(6)

    def planned(rows):
        recipe = recipes.recipe_file(tmp_path / "data", train=rows)
        config, _ = parse_run({**TINY, "name": "encoded", "stages": [{"recipe": str(recipe)}]})
        count.clear()
        plan = make_plan(config)
        return list(count), preflight.train_sizes(plan, plan.tasks[0])

    first, sizes = planned(good)
    assert len([one for one in first if one.startswith("r")]) == 6 == len(sizes)
    preflight._SIZES.clear()
    again, same = planned(good)
    assert not again and same == sizes and preflight._SIZES
    long = llava("late", "<image>\n" + "why " * 600, "no", image="a.png")
    for _ in range(2):  # a plan with a problem keeps nothing
        with pytest.raises(PlanError, match=r"train.json:\S*:late: \d+ tokens, the limit is 512"):
            planned([*good, long])
        assert "late" in count
