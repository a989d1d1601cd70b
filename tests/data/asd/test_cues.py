"""One string per style, and cues come off where they stand at the end."""

import re
from pathlib import Path

import pytest

from mcit.data.asd.cues import CUES, LIMITS, STYLES, native_style, without_cue, words
from mcit.data.sources import demo, shapes
from mcit.evals.style import STYLES as FORMS
from mcit.evals.style import format_valid


def test_the_two_published_cues_are_as_published():
    """LLaVA's documentation and the authors' evaluation script have these two strings."""
    assert CUES["short"] == "Answer the question using a single word or phrase." == shapes.SHORT_CUE
    assert CUES["mcq"] == "Answer with the option's letter from the given choices directly." == shapes.LETTER_CUE
    assert tuple(CUES) == STYLES and len(set(CUES.values())) == 5 and set(LIMITS) == {"brief", "detail"}


@pytest.mark.parametrize(
    "prompt, bare",
    [
        (demo.NAMING_PROMPT, "What is the object in the image?"),
        (demo.EDIBLE_PROMPT, "Can you eat this?"),
        (demo.LOWVISION_PROMPT, demo.LOWVISION_PROMPT),
        (f"Which colour? {demo.WORD_CUE}", "Which colour?"),
        (f"q\nReference OCR token: a, b\n{CUES['short']}", "q\nReference OCR token: a, b"),
        (f"{CUES['short']} Really?", f"{CUES['short']} Really?"),
    ],
)
def test_cues_come_off(prompt, bare):
    assert without_cue(prompt) == bare


def test_cues_of_other_data_sets_are_named_in_the_settings():
    assert without_cue("Where?\nBe short.") == "Where?\nBe short."
    assert without_cue("Where?\nBe short.", ["Be short."]) == "Where?"


def test_styles_of_rows_belong_to_styles_of_the_paper():
    assert [native_style(s) for s in ("letter", "name", "box", "yes_no", "mcq", "text", "")] == [
        "mcq",
        "short",
        "short",
        "yn",
        "mcq",
        None,
        None,
    ]
    assert set(STYLES) <= FORMS  # evaluation knows them, so a diversified row's form can be judged
    assert format_valid("Yes", "yn") and format_valid("B", "mcq", {"choices": ["a", "b"]}) and words(" a  b ") == 2


def test_no_cue_of_the_base_mix():
    """The embedded base was aligned on other hints; no cue of ours may be one of them."""
    mix = (Path(__file__).parents[3] / "scripts" / "alignment_mix.py").read_text()
    assert not [cue for cue in CUES.values() if re.search(re.escape(cue), mix)]
