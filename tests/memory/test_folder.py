"""A memory on disk: whole after a kill anywhere, refused where it is damaged or of another encoder."""

import json
import shutil

import numpy as np
import pytest

from mcit.core.errors import StateError
from mcit.core.stored import seal
from mcit.memory.compact import extract
from mcit.memory.folder import LOCK, RECORD, TURNS, MemoryFolder, require_encoder
from mcit.memory.memory import MemoryConfig
from tests.fakes.memory import Bag


def opened(path, embed=None, **given):
    return MemoryFolder(path, embed or Bag(), extract, **given)


def talk(folder, count):
    for _ in range(count):
        number = folder.memory.turns
        hits = folder.memory.recall(f"name{number // 2}").hits[:1]
        folder.remember(f"what did name{number} draw", f"thing{number}", recalled=[hit.place for hit in hits])


def content(memory):
    return memory.state(), [vars(entry) for entry in memory.entries], memory.vectors.matrix_ND.tobytes()


@pytest.fixture
def kept(tmp_path):
    with opened(tmp_path / "m", config=MemoryConfig(prune_every=5, prune_share=0.2)) as folder:
        talk(folder, 7)
    return tmp_path / "m"


def test_closed_and_opened_again_it_is_the_same(kept):
    with opened(kept) as folder:
        before = content(folder.memory)
        assert folder.memory.turns == 7 and len(folder.memory.entries) == 6
        assert folder.memory.config.prune_every == 5  # its own, not the default
    with opened(kept) as folder:
        assert content(folder.memory) == before
    names = sorted(path.name for path in kept.iterdir())
    assert names in ([LOCK, f"entries-{x}.jsonl", RECORD, f"vectors-{x}.safetensors"] for x in "ab")


def test_texts_are_plain_json_lines(kept):
    (path,) = kept.glob("entries-*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[-1] == {"turn": 6, "question": "what did name6 draw", "answer": "thing6", "recalled": None}


def test_a_kill_between_any_two_writes_changes_nothing(tmp_path, monkeypatch):
    """Copies of the folder before each write are what kills leave; each goes on to the same memory."""
    from mcit.memory import folder as module

    copies = []

    def copying(name):
        real = getattr(module, name)

        def call(path, *args):
            copies.append(tmp_path / f"copy{len(copies)}")
            shutil.copytree(path.parent, copies[-1]) if path.parent.is_dir() else None
            return real(path, *args)

        monkeypatch.setattr(module, name, call)

    for name in ("write_text", "write_bytes", "write_sealed", "append_line", "remove"):
        copying(name)
    settings = MemoryConfig(prune_every=3, prune_share=0.4, block=4)
    with opened(tmp_path / "m", config=settings) as folder:
        talk(folder, 8)
        want = content(folder.memory)
    monkeypatch.undo()
    copies = [copy for copy in copies if (copy / RECORD).is_file()]
    assert len(copies) > 15
    for copy in copies:
        with opened(copy) as folder:
            talk(folder, 8 - folder.memory.turns)
            assert content(folder.memory) == want, copy


def test_what_was_said_is_there_when_the_process_never_closed_it(tmp_path):
    folder = opened(tmp_path / "m").__enter__()
    talk(folder, 3)
    want = content(folder.memory)
    shutil.copytree(tmp_path / "m", tmp_path / "killed")
    folder.__exit__()
    assert (tmp_path / "killed" / TURNS).read_text().count("\n") == 3
    with open(tmp_path / "killed" / TURNS, "ab") as file:
        file.write(b'{"turn": 3, "quest')  # a line torn by the kill
    with opened(tmp_path / "killed") as again:
        assert content(again.memory) == want


def test_another_encoder_or_dimension_is_refused_and_can_take_over(kept):
    for other in (Bag("other"), Bag(dimension=32)):
        with pytest.raises(StateError, match="its vectors are of the encoder bag") as refused:
            opened(kept, other).__enter__()
        assert RECORD in refused.value.where and "--reembed" in refused.value.fix
    with pytest.raises(StateError, match="this one is other"):
        require_encoder(kept, "other")
    require_encoder(kept, "bag")
    require_encoder(kept / "none", "other")
    with opened(kept, Bag("other", 32), reembed=True) as folder:
        assert folder.memory.vectors.matrix_ND.shape == (6, 32) and folder.memory.recall("name6").hits[0].turn == 6
    with opened(kept, Bag("other", 32)) as folder:
        assert folder.memory.turns == 7


def record_with(path, **changes):
    content = {key: value for key, value in json.loads((path / RECORD).read_text()).items() if key != "seal"}
    (path / RECORD).write_text(json.dumps(seal({**content, **changes})))


def cut_vectors(path):
    from safetensors.numpy import save_file

    (file,) = path.glob("vectors-*")
    save_file({"vectors": np.ones((2, 64), dtype=np.float32)}, file)
    swap(path, file)


def swap(path, file):
    """Put the file's own size and checksum into the record, as someone who edits with care would."""
    from mcit.memory.folder import _entry

    files = json.loads((path / RECORD).read_text())["files"]
    record_with(path, files={**files, file.name: _entry(file)})


def edit_entry(path, text):
    (file,) = path.glob("entries-*")
    file.write_text(text)
    swap(path, file)


DAMAGE = {
    "record edited": (lambda p: (p / RECORD).write_text((p / RECORD).read_text().replace("7", "8")), "seal"),
    "record cut off": (lambda p: (p / RECORD).write_bytes((p / RECORD).read_bytes()[:50]), "not valid JSON"),
    "record without a key": (lambda p: (p / RECORD).write_text(json.dumps(seal({"turns": 1}))), "is not the record"),
    "file outside": (lambda p: record_with(p, files={"../x.jsonl": {}, "y.safetensors": {}}), "is not the record"),
    "settings of something else": (lambda p: record_with(p, settings={"hits": -1}), "no settings of a memory"),
    "turns fewer than entries say": (lambda p: record_with(p, turns=3), "a turn to come"),
    "vectors flipped": (lambda p: flip(next(p.glob("vectors-*"))), "size or checksum"),
    "vectors gone": (lambda p: next(p.glob("vectors-*")).unlink(), "missing"),
    "vectors of other rows": (cut_vectors, "2, 64.* where 6 vectors"),
    "entries edited": (lambda p: flip(next(p.glob("entries-*"))), "size or checksum"),
    "entries of another form": (lambda p: edit_entry(p, '{"turn": 1}\n'), r"entries-.\.jsonl:1|is not an entry"),
    "turn edited": (lambda p: (p / TURNS).write_text('{"turn": 7, "seal": "0"}\n'), "not a turn"),
    "turn recalls what is not there": (
        lambda p: (p / TURNS).write_text(
            json.dumps(seal({"turn": 7, "question": "q", "answer": "a", "recalled": [99]})) + "\n"
        ),
        "not there",
    ),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_with_its_place_and_nothing_is_written(kept, name):
    hurt, says = DAMAGE[name]
    hurt(kept)
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    with pytest.raises(StateError, match=says) as refused:
        opened(kept).__enter__()
    assert str(kept) in refused.value.where and refused.value.fix
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_folders_of_something_else_and_of_another_process(tmp_path, kept):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    (tmp_path / "file").write_text("x")
    for path, says in (("mine", "holds other things"), ("file", "is no folder")):
        with pytest.raises(StateError, match=says):
            opened(tmp_path / path).__enter__()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    (kept / "notes.txt").write_text("keep")
    with opened(kept) as folder:
        talk(folder, 1)
        with pytest.raises(StateError, match="another process"):
            opened(kept).__enter__()
    assert (kept / "notes.txt").read_text() == "keep"
