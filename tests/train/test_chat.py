"""A dialogue with the tiny model; that an answer is the scored one is in tests/cli/test_run.py."""

import copy
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from mcit.cli.main import main
from mcit.core.errors import DataError
from mcit.core.interfaces import Silent
from mcit.train.chat import Chat
from mcit.train.standalone import Standalone, model_config


@pytest.fixture(scope="module")
def tiny(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        one = Standalone(model_config("tiny", ["base.dtype=fp32"]), reporter=Silent())
        return {"model": one.model, "encoder": one.encoder, "device": torch.device("cpu")}


class Seen:
    """An encoder that keeps the rows that it was given."""

    def __init__(self, encoder):
        self._encoder, self.rows = encoder, []

    def prompt(self, row):
        self.rows.append(row)
        return self._encoder.prompt(row)

    def __getattr__(self, name):
        return getattr(self._encoder, name)


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_earlier_turns_stay_in_the_prompt_with_the_picture_in_the_first(tiny, picture):
    encoder = Seen(tiny["encoder"])
    chat = Chat(**{**tiny, "encoder": encoder}, images=[picture])
    first = chat.ask("What is this?", max_new_tokens=3)
    chat.ask("And now?", max_new_tokens=3)
    texts = [[turn.text for turn in row.turns] for row in encoder.rows]
    assert texts[0] == ["<image>\nWhat is this?", ""]
    assert texts[1] == ["<image>\nWhat is this?", first["text"], "And now?", ""]
    assert all(Path(row.root, *row.images) == picture for row in encoder.rows)


class Last:
    """The last exchange alone, and what was told to it."""

    def __init__(self):
        self.told = []

    def before(self, turns, question, measure):
        assert measure.prompt(turns, question) > measure.prompt((), question) or not turns
        return turns[-2:], f"{question}!"

    def after(self, question, answer):
        self.told.append((question, answer))


def test_a_memory_chooses_what_of_the_dialogue_is_seen(tiny, picture):
    """Pictures stand in the first turn that is shown, whichever that is."""
    encoder, history = Seen(tiny["encoder"]), Last()
    chat = Chat(**{**tiny, "encoder": encoder}, images=[picture], history=history)
    answers = [chat.ask(question, max_new_tokens=1)["text"] for question in ("one", "two", "three")]
    assert [turn.text for turn in encoder.rows[-1].turns if turn.role == "user"] == ["<image>\ntwo", "three!"]
    assert history.told == list(zip(("one", "two", "three"), answers, strict=True))


def test_a_dialogue_that_the_model_cannot_read_at_once_says_so(tiny):
    short = copy.copy(tiny["encoder"])
    short.max_length = 60
    chat = Chat(**{**tiny, "encoder": short})
    with pytest.raises(DataError, match="the question takes .* tokens, the model reads 60 at once"):
        chat.ask("what is it " * 20, max_new_tokens=1)
    with pytest.raises(DataError, match="the dialogue takes .* tokens, the model reads 60 at once") as caught:
        for _ in range(9):
            chat.ask("what is it", max_new_tokens=1)
    assert "--memory" in caught.value.problems[0].fix
    with pytest.raises(DataError, match="placeholder"):
        chat.ask("<image>", max_new_tokens=1)


def test_prompts_are_padded_where_packs_are_off(tiny, monkeypatch):
    def packed(*args, **kwargs):
        raise AssertionError("packed")

    chat = Chat(**tiny, sharing={"tokens": None, "share": False})
    monkeypatch.setattr("mcit.evals.generator.decode", packed)
    assert chat.ask("Hello?", max_new_tokens=2)["tokens"] <= 2


def test_a_request_beside_the_dialogue_has_no_pictures_and_no_turns(tiny, picture):
    encoder = Seen(tiny["encoder"])
    chat = Chat(**{**tiny, "encoder": encoder}, images=[picture])
    chat.complete("Sum up.", max_new_tokens=1)
    assert encoder.rows[-1].images == () and [turn.text for turn in encoder.rows[-1].turns] == ["Sum up.", ""]
    assert chat.text("Sum up.") > 0


def test_without_a_picture_and_with_one_that_is_gone(tiny, tmp_path):
    assert set(Chat(**tiny).ask("Hello?", max_new_tokens=2)) == {"text", "tokens", "truncated"}
    with pytest.raises(DataError, match="no such picture"):
        Chat(**tiny, images=[tmp_path / "gone.png"])


def test_pictures_are_looked_at_before_weights_load(tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"x")
    for name, what in (("gone.png", "no such picture"), ("broken.png", "is not a picture")):
        given = ["--model", "tiny", "--set", "base.dtype=fp32", "--image", str(tmp_path / name), "--ask", "What?"]
        assert main(["chat", *given]) == 4
        told = capsys.readouterr().err
        assert what in told and "loading tiny" not in told


def test_a_folder_of_something_else_is_refused_before_weights_load(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for place, what in ((tmp_path, "holds other things"), (tmp_path / "notes.txt", "is no folder")):
        given = ["--model", "tiny", "--set", "base.dtype=fp32", "--memory", str(place), "--ask", "What?"]
        assert main(["chat", *given]) == 5
        told = capsys.readouterr().err
        assert what in told and "loading tiny" not in told


def test_a_typed_line_that_is_refused_does_not_end_the_dialogue(capsys, monkeypatch):
    """Piped lines and --ask end it: nobody is there to ask something else."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    given = ["--model", "tiny", "--set", "base.dtype=fp32", "--max-new-tokens", "2"]
    lines = "What <image> is this?\nAnd this?\n"
    for kind, code, answers in ((Terminal, 0, 1), (io.StringIO, 4, 0)):
        monkeypatch.setattr("sys.stdin", kind(lines))
        assert main(["chat", *given]) == code
        told = capsys.readouterr()
        assert len(told.out.splitlines()) == answers and "<image>" in told.err


def test_the_verb_with_a_model_reads_questions_from_standard_input(picture, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is this?\n\nAgain?\n"))
    given = ["--model", "tiny", "--set", "base.dtype=fp32", "--image", str(picture), "--max-new-tokens", "2"]
    assert main(["chat", *given]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for wrong in ([], ["x", "--model", "y"], ["--model", "tiny", "--stage", "1"], ["x", "--set", "a=1"]):
        assert main(["chat", *wrong]) == 2
