"""docs/data.md word by word: files with a title are written or compared, commands run, what they print compared."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from mcit.cli.main import main

PAGE = Path(__file__).parent.parent / "docs" / "data.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def agrees(printed: str, shown: str) -> bool:
    """Equal, with anything for an ellipsis."""
    return re.fullmatch(".*?".join(map(re.escape, shown.split("…"))), printed, re.DOTALL) is not None


def commands(text: str):
    """Each command with what the page shows after it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield shlex.split(command)[1:], shown


def test_the_page_is_true(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "fruit" / "images").mkdir(parents=True)
    for k in range(1, 6):
        Image.new("RGB", (8, 8), (40 * k, 9, 9)).save(tmp_path / "fruit" / "images" / f"{k}.png")
    done = 0
    for language, title, text in BLOCK.findall(PAGE.read_text()):
        if title:
            path = tmp_path / title
            if path.exists():
                assert path.read_text() == text, title
            else:
                path.write_text(text)
        elif language == "console":
            for command, shown in commands(text):
                main(command)
                captured = capsys.readouterr()
                assert agrees(captured.err + captured.out, shown), f"{command}:\n{captured.err}{captured.out}"
                done += 1
    assert done == 4


def test_wrong_pages_are_seen():
    assert agrees("a 1 b\n", "a … b\n") and not agrees("a 1 c\n", "a … b\n")
    (found,) = commands("$ mcit data check 'x y'\nout\n")
    assert found == (["data", "check", "x y"], "out\n")


@pytest.mark.parametrize("word", ["sharegpt", "messages", "fields:", "ids: number", "cue:", "system: front", "expect"])
def test_every_key_of_a_source_is_named(word):
    assert word in PAGE.read_text()
