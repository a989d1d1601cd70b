"""A chat with a memory: the tiny model answers, words are counted for vectors; the verb with everything of its own."""

import copy
import json

import pytest
import torch

from mcit.cli.main import main
from mcit.core.errors import DataError
from mcit.core.interfaces import Silent
from mcit.memory.compact import extract
from mcit.memory.folder import MemoryFolder
from mcit.memory.memory import MemoryConfig
from mcit.train.chat import Chat
from mcit.train.remembering import Remembering, by_model
from mcit.train.standalone import Standalone, model_config
from tests.fakes.memory import Bag
from tests.train.test_chat import Seen


@pytest.fixture(scope="module")
def tiny(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        one = Standalone(model_config("tiny", ["base.dtype=fp32"]), reporter=Silent())
        return {"model": one.model, "encoder": one.encoder, "device": torch.device("cpu")}


def test_an_old_exchange_comes_back_and_prompts_keep_to_the_budget(tiny, tmp_path):
    encoder = Seen(tiny["encoder"])
    with MemoryFolder(tmp_path / "m", Bag(), extract, config=MemoryConfig(parts="vector", hits=1)) as folder:
        for number in range(20):
            folder.remember(f"what is name{number}", f"thing{number}", recalled=[])
        chat = Chat(**{**tiny, "encoder": encoder}, history=Remembering(folder, tiny["encoder"], budget=120))
        lengths = []
        for question in ("tell me of name3", "and now", "what is it", "what is name7"):
            chat.ask(question, max_new_tokens=2)
            row = encoder.rows[-1]
            lengths.append(len(tiny["encoder"].prompt(row).input_ids_T))
        assert [turn.text for turn in row.turns[:2]] == ["what is name7", "thing7"] and max(lengths) <= 120
        assert folder.memory.turns == 24 and folder.memory.entries[7].recalled == 23
        assert folder.memory.entries[-1].question == "what is name7"


def test_prompts_leave_room_for_the_answer_in_what_the_model_reads(tiny, tmp_path):
    short = copy.copy(tiny["encoder"])
    short.max_length = 100
    with MemoryFolder(tmp_path / "m", Bag(), extract, config=MemoryConfig(parts="vector", hits=9)) as folder:
        for number in range(9):
            folder.remember(f"what is the name {number}", f"a thing of number {number}", recalled=[])
        seen = Seen(short)
        chat = Chat(**{**tiny, "encoder": seen}, history=Remembering(folder, short, answer=10))
        for _ in range(6):
            chat.ask("what is the name", max_new_tokens=10)
        lengths = [len(tiny["encoder"].prompt(row).input_ids_T) for row in seen.rows]
        assert 60 < max(lengths) <= 90
        with pytest.raises(DataError, match="of the 100 that the model reads at once 10 are for the answer") as caught:
            chat.ask("name " * 95, max_new_tokens=10)
        assert caught.value.problems[0].fix == "ask in fewer words"  # a larger budget would not help
        long = Chat(**{**tiny, "encoder": seen}, history=Remembering(folder, short, answer=90))
        with pytest.raises(DataError, match="the question alone takes") as caught:
            long.ask("what is the name", max_new_tokens=90)
        assert "with --max-new-tokens" in caught.value.problems[0].fix


def test_control_tokens_of_a_memory_are_words_in_a_prompt(tiny, tmp_path):
    tokenizer = tiny["encoder"].processor.tokenizer
    token = tokenizer.eos_token
    encoder = Seen(tiny["encoder"])
    with MemoryFolder(tmp_path / "m", Bag(), extract) as folder:
        folder.remember(f"what is {token} here", "an <image> it is.", recalled=[])
        chat = Chat(**{**tiny, "encoder": encoder}, history=Remembering(folder, tiny["encoder"]))
        chat.ask("what is here", max_new_tokens=1)
    shown = " ".join(turn.text for turn in encoder.rows[-1].turns)
    assert token not in shown and "<image>" not in shown and "< image>" in shown


def test_summaries_by_the_model_are_asked_for_and_cut():
    asked = []
    summarise = by_model(lambda request: asked.append(request) or "w " * 99, words=10)
    assert summarise("Old.", "new").split() == ["w"] * 10 and "Old." in asked[0] and "new" in asked[0]
    assert by_model(lambda request: "")("Old.", "new") == "Old."


def ask(folder, *more):
    return main(["chat", "--model", "tiny", "--set", "base.dtype=fp32", "--memory", str(folder), *more])


def test_the_verb_remembers_between_two_calls(tmp_path, capsys):
    given = ["--max-new-tokens", "2", "--json"]
    assert ask(tmp_path / "m", "--ask", "what is red", "--ask", "and blue", *given) == 0
    answers = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert ask(tmp_path / "m", "--ask", "again", *given) == 0
    lines = [json.loads(line) for path in (tmp_path / "m").glob("entries-*.jsonl") for line in open(path)]
    assert [line["question"] for line in lines] == ["what is red", "and blue", "again"]
    assert [line["answer"] for line in lines[:2]] == answers and lines[0]["recalled"] == 2


def test_the_verb_refuses_what_does_not_go_together(tmp_path, capsys):
    assert ask(tmp_path / "m", "--ask", "what is red", "--max-new-tokens", "1") == 0
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    small = ["--ask", "what is red", "--budget"]
    wrong = [
        ([*small, "2"], 4, "the question alone takes"),
        ([*small, "0"], 2, "at least 1"),
        (["--set", "base.seed=5", "--ask", "x"], 5, "--reembed"),
        (["--encoder", str(tmp_path), "--ask", "x"], 2, "no folder of an encoder"),
    ]
    for given, code, says in wrong:
        assert ask(tmp_path / "m", *given) == code
        assert says in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    for option in (["--budget", "9"], ["--encoder", "x"], ["--summary", "model"], ["--reembed"]):
        assert main(["chat", "--model", "tiny", *option]) == 2
        assert "goes with --memory only" in capsys.readouterr().err
    renewed = ["--set", "base.seed=5", "--reembed", "--summary", "model", "--ask", "x", "--max-new-tokens", "1"]
    assert ask(tmp_path / "m", *renewed) == 0
