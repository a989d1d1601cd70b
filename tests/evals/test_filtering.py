"""Filters with settings and state: checked, applied, and part of the identity of predictions."""

import pytest

from mcit.core.errors import ConfigError
from mcit.core.files import write_json
from mcit.data.encode import Encoder
from mcit.evals.filtering import filter_problems, identity, load_filters
from mcit.evals.filters.base import Filter, edits_scores, prepares
from mcit.evals.generate import predict
from mcit.evals.generator import greedy
from mcit.evals.predictions import read_predictions
from mcit.models.load import load_processor
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.rows import row

HUSH = "mcit_sample.hush:Hush"
ROWS = [row(f"What is {k}?", "yes", id=f"r{k}") for k in range(3)]


def left(folder, value):
    folder.mkdir(exist_ok=True)
    write_json(folder / "state.json", {"kept": value})
    return {"replay": folder, "other": folder}


def test_identity_follows_settings_version_and_the_state_that_is_read(tmp_path):
    def of(spec, state):
        return identity([spec], load_filters([spec]), state)

    plain = of(HUSH, {})
    assert plain[0]["use"] == HUSH and plain[0]["version"] == 2 and plain[0]["state"] == {}
    assert of({"use": HUSH, "word": "no"}, {}) != plain
    first = of(HUSH, left(tmp_path / "a", 1))
    assert set(first[0]["state"]) == {"replay"} and first == of(HUSH, left(tmp_path / "a", 1))
    assert of(HUSH, left(tmp_path / "a", 2)) != first
    assert not prepares(Filter()) and prepares(load_filters([HUSH])[0]) and not edits_scores(load_filters([HUSH])[0])


def test_problems_are_found_at_planning():
    assert [p.what for p in filter_problems(["stripp", {"word": 1}])][1] == "has no use"
    (found,) = filter_problems([{"use": HUSH, "wrod": "x"}])
    assert found.where == "eval.filters[0].wrod" and found.what == "unknown key"
    with pytest.raises(ConfigError, match="unknown key"):
        load_filters([{"use": "strip", "x": 1}])


class Two(Filter):
    """Two beams; remembers how many rows it saw beside how many scores."""

    beams = 2
    seen: list = []

    def logits(self, step, scores_BV, ctx):
        Two.seen.append((len(ctx.rows), len(scores_BV)))
        return scores_BV


def test_state_and_hidden_states_reach_a_filter_and_beams_are_searched(tmp_path):
    model, encoder = tiny_model().eval(), Encoder(load_processor(tiny_path()))
    given = {"batch": 2, "max_new_tokens": 3, "device": "cpu"}
    predict(model, encoder, ROWS, out=tmp_path / "none", filters=[HUSH], **given)
    predict(model, encoder, ROWS, out=tmp_path / "kept", filters=[HUSH], state=left(tmp_path / "a", 1), **given)
    texts = [[line["text"] for line in read_predictions(tmp_path / name)] for name in ("none", "kept")]
    assert "hush" not in texts[0] and texts[1] == ["hush"] * 3
    with greedy(model, encoder, max_new_tokens=2) as generator:
        generator.answer(ROWS[:2], filters=[Two()], device="cpu")
    assert Two.seen and all(pair == (4, 4) for pair in Two.seen)
