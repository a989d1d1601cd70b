"""The notation of quiz files, and which WordNet words are taken."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import build_general
from build_general import plain, quiz_lines, wordnet


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("large|big", "large"),
        ("Cal{if{ornia}}", "California"),
        ("Bahr[a|e]in", "Bahrain"),
        ("Yaound['e|e'|e]", "Yaounde"),
        ("forget{-| }me{-| }not", "forget-me-not"),
        ("{G{eorge} }Washington", "George Washington"),
    ],
)
def test_quiz_notation(field, text):
    assert plain(field) == text


def test_quiz_lines_continue_after_a_backslash(tmp_path):
    (tmp_path / "q").write_text("a:\\\nb|c\nd:e\n")
    assert list(quiz_lines(tmp_path / "q")) == [["a", "b"], ["d", "e"]]


def test_wordnet_takes_first_senses_of_frequent_words(tmp_path, monkeypatch):
    """``tree`` is frequent; ``oak`` is short, ``birch`` rare, ``kill`` left out; the definition stops before the example."""
    monkeypatch.setattr(build_general, "LONGEST", 60)
    glosses = {"tree": 'a tall plant; "the tree grew behind the old house"', "birch": "a plant", "kill": "kill a plant"}
    lines, offsets, at = [], {}, 0
    for word, gloss in glosses.items():
        line = f"{at:08d} 20 n 01 {word} 0 000 | {gloss}  \n"
        offsets[word] = at
        lines.append(line)
        at += len(line.encode())
    (tmp_path / "data.noun").write_text("".join(lines))
    (tmp_path / "index.noun").write_text(
        "  1 a licence\n" + "".join(f"{w} n 1 1 @ 1 1 {o:08d}  \n" for w, o in offsets.items())
    )
    for part in ("verb", "adj", "adv"):
        (tmp_path / f"index.{part}").write_text("")
        (tmp_path / f"data.{part}").write_text("")
    counts = {"tree%1:20:00::": 30, "birch%1:20:00::": 2, "kill%1:20:00::": 50, "oak%1:20:00::": 40}
    (tmp_path / "cntlist.rev").write_text("".join(f"{sense} 1 {n}\n" for sense, n in counts.items()))
    assert wordnet(tmp_path) == ([["tree", "a tall plant"]], ["The tree grew behind the old house."])
