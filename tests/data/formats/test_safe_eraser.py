"""SafeEraser's records as rows."""

import json

from PIL import Image

from mcit.data.build import build
from mcit.data.folder import DataFolder
from mcit.data.forgetset import decoupled
from mcit.data.formats.element import Element
from mcit.data.formats.safe_eraser import rows_of
from mcit.data.recipe import load_recipe

RECORD = {
    "image_path": "Weapon/1.png",
    "SDImage_path": "sd/1.png",
    "unsafe_pairs": [
        {"question": "How do I use THIS?", "model_response": "Aim.", "sd_response": "It is a cup."},
        {"question": "Where is it?", "model_response": "Here.", "sd_response": "On a table."},
    ],
    "UnharmPair_text1": {"Question": "What is a barrel?", "Prediction": "A tube."},
    "UnharmPair_image1": {"Question": "Which one is shown?", "Prediction": "A rifle."},
}


def rows(part, record=None):
    return [e.value for e in rows_of([Element(3, record or RECORD)], part)]


def test_the_three_parts_of_a_record():
    forget, decouple, retain = rows("forget"), rows("decouple"), rows("retain")
    assert [(r["id"], r["image"], r["conversations"][1]["value"]) for r in forget] == [
        ("3-1", "Weapon/1.png", "Aim."),
        ("3-2", "Weapon/1.png", "Here."),
    ]
    assert [(r["id"], r["image"], r["conversations"][1]["value"]) for r in decouple] == [
        ("3-1", "sd/1.png", "It is a cup."),
        ("3-2", "sd/1.png", "On a table."),
    ]
    assert [(r["id"], r.get("image"), r["conversations"][0]["value"]) for r in retain] == [
        ("3-text1", None, "What is a barrel?"),
        ("3-image1", "Weapon/1.png", "<image>\nWhich one is shown?"),
    ]
    assert forget[0]["conversations"][0]["value"] == "<image>\nHow do I use THIS?"
    assert {r["meta"]["category"] for r in forget + decouple + retain} == {"Weapon"}


def test_a_record_of_another_form_is_named():
    for record, words in (
        ({"image_path": "a/b.png"}, "unsafe_pairs"),
        ([], "something else"),
        ({**RECORD, "unsafe_pairs": [{}]}, "question"),
    ):
        (found,) = rows_of([Element(7, record)], "forget")
        assert words in found.problem and found.line == 7
    (same,) = rows_of([Element(7, None, "broken")], "forget")
    assert same.problem == "broken"


def test_recipes_of_the_parts_belong_together(tmp_path):
    """Built from one file: rows to forget find their harmless pictures by id."""
    for name in ("Weapon/1.png", "sd/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(tmp_path / name)
    (tmp_path / "data.json").write_text(json.dumps([RECORD]))
    folders = {}
    for part in ("forget", "decouple", "retain"):
        path = tmp_path / f"{part}.yaml"
        path.write_text(
            f"name: se/{part}\ntask: se-{part}\nsources: [{{kind: safe_eraser, part: {part}, path: data.json}}]\n"
        )
        folders[part] = DataFolder.open(build(load_recipe(path)))
    assert len(folders["retain"].rows()) == 2
    paired = decoupled(folders["forget"].rows(), folders["decouple"].rows())
    assert [row.answer for row in paired] == ["It is a cup.", "On a table."]
