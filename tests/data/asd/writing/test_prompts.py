"""Prompts: inputs in, the wanted form valid JSON, lengths consistent, pictures below their root."""

import json

import pytest

from mcit.core.errors import DataError
from mcit.data.asd.cues import LIMITS
from mcit.data.asd.diversify import Job
from mcit.data.asd.exchange import Exchange
from mcit.data.asd.writing.prompts import ocr_tokens, prompt_for, shape_of
from tests.fakes.rows import picture, row

ONE = (Exchange("What is it?", "cat"),)
TWO = (*ONE, Exchange("Which colour?", "red"))
BOX = (Exchange("Where is it?", "[0.1, 0.1, 0.2, 0.2]"),)


def job(style, exchanges=ONE, **fields):
    return Job(0, row("q", "a", **fields), style, exchanges, None)


def form(prompt):
    """The JSON at the end of a prompt."""
    return json.loads(prompt.text.rpartition("in this form:\n")[2])


@pytest.mark.parametrize(
    "style, exchanges, cells, shape, keys",
    [
        ("yn", ONE, "none", "single", {"distractor_option"}),
        ("mcq", ONE, "none", "single", {"distractor_options"}),
        ("brief", ONE, "none", "single", {"explanation"}),
        ("detail", ONE, "classes", "class", {"gt_category", "explanation"}),
        ("yn", TWO, "none", "list", {"question_index", "question", "correct_answer", "distractor_option"}),
        ("mcq", TWO, "none", "list", {"question_index", "question", "correct_answer", "distractor_options"}),
        ("detail", TWO, "none", "list", {"question_index", "question", "correct_answer", "explanation"}),
        ("brief", BOX, "boxes", "targets", {"target_index", "description"}),
    ],
)
def test_the_form_of_the_contract(style, exchanges, cells, shape, keys):
    """Keys as in the table of published prompts."""
    made = job(style, exchanges)
    assert shape_of(made, cells) == shape
    prompt = prompt_for(made, shape, limits=LIMITS)
    wanted = form(prompt)
    items = wanted if shape in ("list", "targets") else [wanted]
    assert len(items) == len(exchanges) and all(set(item) == keys for item in items)
    assert all(exchange.answer in prompt.text for exchange in exchanges) and prompt.system
    if "distractor_options" in keys:
        assert all(len(item["distractor_options"]) == 3 for item in items)


@pytest.mark.parametrize("style, about, low, high", [("brief", 20, 8, 45), ("detail", 50, 25, 90)])
def test_one_length_per_style(style, about, low, high):
    for exchanges, cells in ((ONE, "none"), (ONE, "classes"), (TWO, "none"), (BOX, "boxes")):
        made = job(style, exchanges)
        text = prompt_for(made, shape_of(made, cells), limits=LIMITS).text
        assert f"about {about} words (never fewer than {low} or more than {high})" in text


def test_options_tokens_and_refusals_are_told():
    options = (Exchange("Which?", "x", ("x", "y")),)
    assert "Choose from: x; y." in prompt_for(job("brief", options), "single", limits=LIMITS).text
    tokens = (Exchange("What brand?\nReference OCR token: acme, 7up", "acme"),)
    assert ocr_tokens(tokens[0]) == "acme, 7up" and ocr_tokens(ONE[0]) == ""
    assert "reference OCR tokens" in prompt_for(job("mcq", tokens), "single", limits=LIMITS).text
    assert "reference OCR tokens" not in prompt_for(job("mcq"), "single", limits=LIMITS).text
    again = prompt_for(job("mcq"), "single", limits=LIMITS, refused=("too short", "odd"))
    assert again.text.endswith("An earlier reply was refused: too short; odd. Avoid this.")


def test_pictures(tmp_path):
    picture(tmp_path)
    prompt = prompt_for(job("yn", images=("a.png",), root=tmp_path), "single", limits=LIMITS)
    assert prompt.images == (str(tmp_path / "a.png"),) and "image" in prompt.text.split("\n")[0]
    assert not prompt_for(job("yn"), "single", limits=LIMITS).images
    with pytest.raises(DataError, match="leaves its root"):
        prompt_for(job("yn", images=("../a.png",), root=tmp_path), "single", limits=LIMITS)
