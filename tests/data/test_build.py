"""Built folders: content, identity, idempotence, refusals, and kills."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from mcit.core.errors import ConfigError, DataError, StateError
from mcit.core.files import sha256_tree
from mcit.core.records import DataManifest
from mcit.core.stored import check_manifest
from mcit.data.build import build, check, folder_of
from mcit.data.folder import DataFolder
from mcit.data.recipe import find_recipe, load_recipe, recipe_digest
from scripts.inject.faultpoints import Fault, Operations
from tests.core.test_hashes import changed_behind
from tests.fakes.recipes import recipe_file, rows
from tests.fakes.rows import llava, picture


def built(path, data):
    """Build and open."""
    return DataFolder.open(build(load_recipe(path), data_dir=data))


def test_generated_folder(tmp_path):
    recipe = load_recipe(find_recipe("tiny/letter"))
    lines = []
    path = build(recipe, data_dir=tmp_path, announce=lines.append)
    digest = recipe_digest(recipe)
    assert path == tmp_path / f"tiny-letter-{digest[:12]}" == folder_of(recipe, digest=digest, data_dir=tmp_path)
    check_manifest(path, model=DataManifest)
    folder = DataFolder.open(path)
    assert folder.counts == {"train": 120, "validation": 12, "test": 24} and folder.digest == digest
    assert folder.manifest["styles"]["test"] == {"letter": 24} and folder.manifest["dropped"] == []
    assert (path / "images" / "0" / "letter-00000.png").is_file() and len(lines) == 1
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    assert build(recipe, data_dir=tmp_path, announce=lines.append) == path and len(lines) == 1
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_equal_recipes_give_equal_bytes(tmp_path):
    recipe = load_recipe(find_recipe("tiny/yesno"))
    assert sha256_tree(build(recipe, data_dir=tmp_path / "a")) == sha256_tree(build(recipe, data_dir=tmp_path / "b"))


def test_llava_rows_keep_their_pictures_where_they_are(tmp_path):
    folder = built(recipe_file(tmp_path / "s", train=rows(3), test=rows(2, prefix="t")), tmp_path / "data")
    assert not (folder.path / "images").exists()
    assert folder.rows("train")[0].root == str((tmp_path / "s" / "images").resolve())
    assert str(tmp_path) not in (folder.path / "train.jsonl").read_text()
    assert folder.manifest["sources"][0]["rows"] == 3 and len(folder.manifest["sources"][0]["sha256"]) == 64


def test_folder_follows_pictures_that_moved(tmp_path, monkeypatch):
    folder = built(recipe_file(tmp_path / "old", train=rows(1)), tmp_path / "data")
    os.rename(tmp_path / "old", tmp_path / "new")
    monkeypatch.setattr("mcit.data.build.collect", None)  # what is known of the pictures stays true
    again = built(tmp_path / "new" / "recipe.yaml", tmp_path / "data")
    assert again.digest == folder.digest and again.rows("train")[0].root == str((tmp_path / "new" / "images").resolve())
    assert (again.path / "manifest.json").read_text() != (folder.path / "manifest.json").read_text()


def test_other_pictures_are_another_data_set(tmp_path):
    one, two = (recipe_file(tmp_path / name, train=rows(2)) for name in "ab")
    picture(tmp_path / "b" / "images", "a.png", colour=(9, 9, 9))
    first, second = built(one, tmp_path / "data"), built(two, tmp_path / "data")
    assert first.path != second.path and first.digest != second.digest
    for folder, path in ((first, one), (second, two)):  # neither moved the other's roots
        again = built(path, tmp_path / "data")
        assert again == folder and again.rows("train")[0].root == str(path.parent / "images")


def test_equal_pictures_elsewhere_are_the_same_data_set_with_roots_of_its_own(tmp_path):
    one, two = (built(recipe_file(tmp_path / name, train=rows(2)), tmp_path / "data") for name in "ab")
    assert one.digest == two.digest and one.path != two.path
    (tmp_path / "a" / "images" / "a.png").unlink()
    assert built(tmp_path / "b" / "recipe.yaml", tmp_path / "data") == two


def test_a_picture_replaced_in_place_is_another_data_set(tmp_path):
    path = recipe_file(tmp_path / "s", train=rows(2))
    first = built(path, tmp_path / "data")
    changed_behind(tmp_path / "s" / "images" / "a.png", at=45)
    with pytest.raises(DataError, match="damaged or cut off"):  # the changed byte spoils a checksum of the picture
        built(path, tmp_path / "data")
    picture(tmp_path / "s" / "images", "a.png", colour=(9, 9, 9))
    second = built(path, tmp_path / "data")
    assert second.path != first.path and second.digest != first.digest
    picture(tmp_path / "s" / "images", "a.png")
    assert built(path, tmp_path / "data") == first


def test_a_picture_that_is_gone_is_told_at_the_next_start(tmp_path):
    path = recipe_file(tmp_path / "s", train=rows(2))
    built(path, tmp_path / "data")
    os.rename(tmp_path / "s" / "images" / "a.png", tmp_path / "away.png")
    with pytest.raises(DataError, match=r"a\.png does not exist"):
        built(path, tmp_path / "data")
    (tmp_path / "s" / "images" / "a.png").symlink_to(tmp_path / "away.png")  # the same bytes, out of the root
    with pytest.raises(DataError, match="link out of its root"):
        built(path, tmp_path / "data")


def test_a_repaired_picture_brings_its_row_back(tmp_path):
    train = [*rows(2), llava("x", "<image>\nq", image="late.png")]
    path = recipe_file(tmp_path / "s", train=train, allow_bad=1)
    assert built(path, tmp_path / "data").counts["train"] == 2
    picture(tmp_path / "s" / "images", "late.png")
    assert built(path, tmp_path / "data").counts["train"] == 3


def test_a_damaged_list_of_pictures_is_named(tmp_path):
    path = recipe_file(tmp_path / "s", train=rows(2))
    folder = built(path, tmp_path / "data")
    for text in ("[", '["0"]\n', "{}\n", '["0", "a.png", 5]\n', ""):
        (folder.path / "pictures.jsonl").write_text(text)
        with pytest.raises(StateError, match="differs from the manifest") as error:
            built(path, tmp_path / "data")
        assert error.value.where.endswith("pictures.jsonl") and error.value.fix


@pytest.mark.parametrize("recipe", ["shipped", "pictures outside"])
def test_a_folder_that_lost_its_manifest_is_named(tmp_path, recipe):
    if recipe == "shipped":
        recipe = load_recipe(find_recipe("tiny/letter"))
    else:
        recipe = load_recipe(recipe_file(tmp_path, train=rows(4)))
    folder = build(recipe, data_dir=tmp_path / "d")
    (folder / "manifest.json").unlink()
    with pytest.raises(StateError) as error:
        build(recipe, data_dir=tmp_path / "d")
    (problem,) = error.value.problems
    assert (
        problem.where == str(folder) and "no manifest.json" in problem.what and "remove the data folder" in problem.fix
    )
    assert not list((tmp_path / "d").glob(".*.tmp"))
    shutil.rmtree(folder)
    assert build(recipe, data_dir=tmp_path / "d") == folder


def test_bad_rows_are_refused_all_together_or_dropped_as_allowed(tmp_path):
    train = [*rows(2), llava("x", answer=""), llava("y", "<image>", image="gone.png")]
    path = recipe_file(tmp_path / "s", train=train, allow_bad=1)
    with pytest.raises(DataError) as caught:
        build(load_recipe(path), data_dir=tmp_path / "data")
    text = str(caught.value)
    assert "2 bad row(s), the recipe allows 1" in text and "train.json:4:x" in text and "train.json:5:y" in text
    assert [p for p in (tmp_path / "data").iterdir() if p.is_dir()] == []
    report = check(load_recipe(path))
    assert not report.ok and len(report.bad) == 2 and report.counts["train"] == 2
    path.write_text(path.read_text().replace("allow_bad: 1", "allow_bad: 2"))
    folder = built(path, tmp_path / "data")
    assert folder.counts["train"] == 2 and check(load_recipe(path)).ok
    assert [d["where"] for d in folder.manifest["dropped"]] == ["train.json:4:x", "train.json:5:y"]


def test_wrong_checksum_and_nothing_left(tmp_path):
    path = recipe_file(tmp_path / "s", train=rows(1))
    source = {"kind": "llava", "path": "train.json", "images": "images"}
    bad = recipe_file(tmp_path / "s", train=rows(1), sources=[{**source, "sha256": "0" * 64}])
    with pytest.raises(DataError, match="the recipe expects"):
        build(load_recipe(bad), data_dir=tmp_path / "data")
    path = recipe_file(tmp_path / "t", train=[llava("x", answer="")], allow_bad=1)
    with pytest.raises(DataError, match="no rows are left"):
        build(load_recipe(path), data_dir=tmp_path / "data")
    assert not check(load_recipe(path)).ok


def test_transforms_and_validation_never_touch_the_test(tmp_path):
    path = recipe_file(
        tmp_path / "s",
        train=rows(40),
        test=rows(10, prefix="t"),
        transforms=[{"use": "subsample", "rows": 20}, {"use": "relabel", "answers": {"yes": "indeed"}}],
        split={"validation": 0.25},
    )
    folder = built(path, tmp_path / "data")
    assert folder.counts == {"train": 15, "validation": 5, "test": 10}
    assert folder.manifest["transforms"] == [
        {"use": "subsample", "rows_before": 40, "rows_after": 20},
        {"use": "relabel", "rows_before": 20, "rows_after": 20},
    ]
    assert {r.answer for r in folder.rows("test")} == {"yes", "no"}
    assert {r.answer for r in [*folder.rows("train"), *folder.rows("validation")]} == {"indeed", "no"}
    ids = [r.id for split in ("train", "validation") for r in folder.rows(split)]
    assert len(set(ids)) == 20
    order = [int(r.id[1:]) for r in folder.rows("train")]
    assert order == sorted(order)  # the sources' order


def test_validation_keeps_groups_together_and_is_stable(tmp_path):
    train = [llava(f"r{k}", f"q{k}", meta={"who": k // 4}) for k in range(40)]
    path = recipe_file(tmp_path / "s", train=train, split={"validation": 6, "by": "meta.who"})
    folder = built(path, tmp_path / "data")
    held, kept = ({r.meta["who"] for r in folder.rows(s)} for s in ("validation", "train"))
    assert not held & kept and folder.counts["validation"] == 8  # two groups of four hold six
    more = recipe_file(
        tmp_path / "t",
        train=[*train, llava("new", "new?", meta={"who": 99})],
        split={"validation": 6, "by": "meta.who"},
    )
    assert held & {r.meta["who"] for r in built(more, tmp_path / "data").rows("validation")}
    seeded = recipe_file(tmp_path / "u", train=train, split={"validation": 6, "by": "meta.who", "seed": 5})
    assert {r.meta["who"] for r in built(seeded, tmp_path / "data").rows("validation")} != held
    for split in ({"validation": 40}, {"validation": 1, "by": "meta.gone"}):
        with pytest.raises(DataError):
            build(load_recipe(recipe_file(tmp_path / "v", train=train, split=split)), data_dir=tmp_path / "data")


def test_split_by_image(tmp_path):
    (tmp_path / "s" / "images").mkdir(parents=True)
    names = [picture(tmp_path / "s" / "images", f"p{k}.png", colour=(k, 0, 0)) for k in range(6)]
    train = [llava(f"r{k}", f"<image>\nq{k}", image=names[k % 6]) for k in range(24)]
    folder = built(recipe_file(tmp_path / "s", train=train, split={"validation": 0.3, "by": "image"}), tmp_path / "d")
    held, kept = ({r.images for r in folder.rows(s)} for s in ("validation", "train"))
    assert not held & kept and folder.counts["validation"] == 8


def test_changed_source_is_a_new_folder(tmp_path):
    first = built(recipe_file(tmp_path / "s", train=rows(2)), tmp_path / "data")
    second = built(recipe_file(tmp_path / "s", train=rows(3)), tmp_path / "data")
    assert first.path != second.path and DataFolder.open(first.path).counts["train"] == 2


def test_read_only_data_folder(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StateError, match="permission denied"):
        build(load_recipe(find_recipe("tiny/word")), data_dir=tmp_path / "x")


def test_killed_build_is_whole_or_absent_and_the_next_one_cleans_up(tmp_path):
    """A kill before every third file operation of a build."""
    path = recipe_file(tmp_path / "s", train=rows(2), test=rows(1, prefix="t"))
    data = tmp_path / "data"

    def attempt(folder, number):
        """Build in a process that is killed at an operation; the number of operations of one that was not."""
        note = tmp_path / f"{number}.txt"
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException), Operations(folder, Fault(number), note=note):
                build(load_recipe(path), data_dir=folder)
                os._exit(0)
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        return len(note.read_text().splitlines()) if code == 0 else 0

    (tmp_path / "whole").mkdir()
    data.mkdir()
    total = attempt(tmp_path / "whole", 0)
    assert total >= 25
    expected = sha256_tree(next(p for p in (tmp_path / "whole").iterdir() if p.is_dir()))
    for number in range(1, total + 1, 3):
        shutil.rmtree(data)
        data.mkdir()
        assert attempt(data, number) == 0
        visible = [p for p in data.iterdir() if p.is_dir() and not p.name.startswith(".")]
        for folder in visible:
            DataFolder.open(folder)
            assert sha256_tree(folder) == expected
    assert attempt(data, 0)
    assert sorted(p.suffix for p in data.iterdir() if p.name.startswith(".")) == [".lock"]


def test_transform_that_repeats_an_id(tmp_path, monkeypatch):
    from mcit.data.transforms.dedupe import Dedupe

    monkeypatch.setattr(Dedupe, "apply", lambda self, rows, *, seed: [*rows, rows[0]])
    with pytest.raises(DataError, match="several rows with id 'r0'"):
        build(
            load_recipe(recipe_file(tmp_path, train=rows(2), transforms=[{"use": "dedupe"}])), data_dir=tmp_path / "d"
        )


def test_jsonl_is_plain(tmp_path):
    folder = built(recipe_file(tmp_path / "s", train=rows(1, style="word")), tmp_path / "data")
    value = json.loads((folder.path / "train.jsonl").read_text())
    assert value == {
        "id": "r0",
        "images": ["a.png"],
        "turns": [{"role": "user", "text": "<image>\nIs it r 0?"}, {"role": "assistant", "text": "no"}],
        "task": "task",
        "source": "train.json:2",
        "style": "word",
        "meta": {},
        "root": "0",
    }
    with pytest.raises(ConfigError):
        find_recipe("nothing")
