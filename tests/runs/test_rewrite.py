import pytest

from mcit.core.errors import StateError
from mcit.runs.layout import RunLayout
from mcit.runs.rewrite import finish, prepare
from tests.fakes.run_dir import killed_at

OLD = {"config.yaml": b"old", "plan.json": b"{}", "manifest.json": b"older"}
NEW = {"config.yaml": b"new", "plan.json": b"[]"}


def layout_of(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in OLD.items():
        (folder / name).write_bytes(data)
    return RunLayout(folder)


def content(layout):
    return {
        p.name: p.read_bytes()
        for p in layout.root.iterdir()
        if p.name[0] != "." and p.is_file() and p.name != "manifest.json"
    }


def test_files_are_replaced_and_nothing_else_is_left(tmp_path):
    layout = layout_of(tmp_path)
    assert not finish(layout)
    prepare(layout, NEW)
    assert content(layout) == {k: v for k, v in OLD.items() if k != "manifest.json"} and layout.extension.is_dir()
    assert finish(layout) and not finish(layout)
    assert content(layout) == NEW and sorted(p.name for p in tmp_path.iterdir()) == sorted(OLD)
    assert b"config.yaml" in layout.manifest.read_bytes()


def test_a_kill_at_any_moment_leaves_the_old_files_or_the_new_ones_after_the_next_start(tmp_path):
    def work(folder):
        layout = RunLayout(folder)
        prepare(layout, NEW)
        finish(layout)

    seen, number = set(), 0
    while True:
        number += 1
        layout = layout_of(tmp_path / str(number))
        if not killed_at(number, lambda layout=layout: work(layout.root)):
            break
        decided = layout.extension.is_dir()
        finish(layout)
        found = content(layout)
        assert found in ({k: v for k, v in OLD.items() if k != "manifest.json"}, NEW)
        assert not decided or found == NEW
        seen.add(found["config.yaml"])
    assert number > 10 and seen == {b"old", b"new"}


def test_decided_files_that_were_changed_are_named(tmp_path):
    layout = layout_of(tmp_path)
    prepare(layout, NEW)
    (layout.extension / "plan.json").write_bytes(b"{")
    with pytest.raises(StateError, match="checksum differs") as error:
        finish(layout)
    assert "plan.json" in str(error.value) and content(layout)["config.yaml"] == b"old"
