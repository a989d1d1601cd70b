"""Which pictures a built folder means: listed by content, compared where its roots are now."""

import json

import numpy as np
import pytest

from mcit.core.errors import StateError
from mcit.data.build import build
from mcit.data.folder import DataFolder
from mcit.data.pictures import FILE, PictureList, located, outside, unchanged
from mcit.data.recipe import find_recipe, load_recipe
from tests.core.test_hashes import changed_behind
from tests.fakes.recipes import recipe_file, rows
from tests.fakes.rows import llava, picture


@pytest.fixture
def recipe(tmp_path):
    """Three rows about two pictures, one of them missing, and one row that leaves the root."""
    train = [*rows(2), llava("x", "<image>\nq", image="gone.png"), llava("y", "<image>\nq", image="../out.png")]
    return recipe_file(tmp_path / "s", train=train, allow_bad=2)


def test_every_picture_is_listed_once_with_its_content(recipe, tmp_path):
    from mcit.core.files import sha256_file

    folder = build(load_recipe(recipe), data_dir=tmp_path / "data")
    listed = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    digest = sha256_file(tmp_path / "s" / "images" / "a.png")
    assert listed == [["0", "a.png", digest], ["0", "gone.png", None], ["0", "../out.png", None]]


def test_changes_of_each_kind_are_seen(recipe, tmp_path):
    images = tmp_path / "s" / "images"
    folder = build(load_recipe(recipe), data_dir=tmp_path / "data")
    roots = DataFolder.open(folder).manifest["roots"]
    assert outside(roots) and unchanged(folder, roots)
    data = (images / "a.png").read_bytes()
    changed_behind(images / "a.png")
    assert not unchanged(folder, roots)
    (images / "a.png").write_bytes(data)
    assert unchanged(folder, roots)
    picture(images, "gone.png")
    assert not unchanged(folder, roots)
    (images / "gone.png").unlink()
    picture(tmp_path / "s", "out.png")  # what leaves the root is not looked at
    assert unchanged(folder, roots)
    (images / "a.png").unlink()
    assert not unchanged(folder, roots) and not unchanged(folder, {"0": str(tmp_path)})


def test_generated_pictures_are_the_folder_s_own(tmp_path):
    folder = build(load_recipe(find_recipe("tiny/word")), data_dir=tmp_path)
    roots = DataFolder.open(folder).manifest["roots"]
    assert not outside(roots) and unchanged(folder, roots) and not (folder / FILE).exists()
    image = next((folder / "images").rglob("*.png"))
    changed_behind(image)
    with pytest.raises(StateError, match="differs from the manifest"):
        DataFolder.open(folder)


def test_a_list_keeps_what_is_used_and_outside(tmp_path):
    listed = PictureList(tmp_path / "all.jsonl", {"/own": "0", "/other": "1"})
    for root, path, digest in [("/own", "b.png", "x"), ("/other", "c.png", "y"), ("/other", "d.png", None)]:
        listed.add(root, path, digest)
    listed.close(np.array([7, -3, 9]))
    for used, text in (([7, 9], '["1", "d.png", null]\n'), ([-3, 7], '["1", "c.png", "y"]\n'), ([], "")):
        listed.write(tmp_path / "some.jsonl", np.array(used, np.int64), {"0": None, "1": "/other"})
        assert (tmp_path / "some.jsonl").read_text() == text


def test_a_list_of_no_pictures_is_empty(tmp_path):
    PictureList(tmp_path / "all.jsonl", {}).write(tmp_path / "some.jsonl", np.array([7]), {})
    assert (tmp_path / "some.jsonl").read_bytes() == b""


def test_a_path_out_of_its_root_is_no_file(tmp_path):
    (tmp_path / "root").mkdir()
    picture(tmp_path, "out.png")
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "out.png")
    for path in ("../out.png", "link.png", str(tmp_path / "out.png")):
        assert not located(str(tmp_path / "root"), path).exists()
