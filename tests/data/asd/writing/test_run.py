"""The loop over jobs: attempts, resuming, provenance, failures; against a server on this machine."""

import json
import threading
from collections import Counter

import pytest
from filelock import FileLock

from mcit.core.errors import DataError, Interrupted, StateError
from mcit.data.asd.answers import load_answers
from mcit.data.asd.cues import CUES, LIMITS
from mcit.data.asd.writing.client import OpenAiBackend
from mcit.data.asd.writing.run import asd_choice, to_write, write_answers
from mcit.data.build import build
from mcit.data.collect import collect
from mcit.data.folder import DataFolder
from mcit.data.recipe import load_recipe
from mcit.evals.normalise import normalise
from tests.fakes.chat_server import chat_server, good_reply
from tests.fakes.recipes import recipe_file
from tests.fakes.rows import llava
from tests.fakes.run_dir import json_lines


def vqa_rows(count):
    """Rows of two questions each, as GQA packs them; the cue stands in the first question only."""
    out = []
    for k in range(count):
        talk = [f"<image>\nWhat is {k}?\n{CUES['short']}", f"thing{k}", f"Which colour has {k}?", f"red{k}"]
        turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(talk)]
        out.append({"id": f"r{k}", "image": "a.png", "style": "word", "conversations": turns})
    return out


@pytest.fixture
def recipe(tmp_path):
    steps = [{"use": "asd", "percent": 40, "answers": "made.jsonl"}]
    return load_recipe(recipe_file(tmp_path / "s", train=vqa_rows(20), transforms=steps))


def jobs_of(recipe, tmp_path):
    return to_write(asd_choice(recipe, collect(recipe, tmp_path / "pictures"))[1])


def write(jobs, url, out, *, tries=2, model="m", **settings):
    backend = OpenAiBackend(url, model, sleep=lambda s: None, tries=tries, timeout=20)
    return write_answers(jobs, "none", backend, out=out, normalise=normalise, limits=LIMITS, **settings)


def test_every_job_is_asked_once_and_the_recipe_uses_the_answers(recipe, tmp_path):
    """20 rows at X=40: floor(20*40/400) = 2 per foreign style, 8 jobs."""
    jobs = jobs_of(recipe, tmp_path)
    out = tmp_path / "s" / "made.jsonl"
    with chat_server(good_reply) as asked:
        tally = write(jobs, asked.url, out, concurrency=3)
    assert (tally.jobs, tally.accepted, tally.requests, tally.given_up) == (8, 8, 8, 0) == (8, len(asked.bodies), 8, 0)
    folder = DataFolder.open(build(recipe, data_dir=tmp_path / "d"))
    assert folder.manifest["styles"]["train"] == {"brief": 2, "detail": 2, "mcq": 2, "word": 12, "yn": 2}
    converted = [r for r in folder.rows("train") if "asd" in r.meta]
    assert {r.meta["asd"]["generator"] for r in converted} == {"openai:m:prompt-1:attempt-1"}
    assert all(len(r.turns) == 4 and r.turns[2].text.endswith(CUES[r.style]) for r in converted)
    assert Counter(t.text for r in converted if r.style == "yn" for t in r.turns[1::2]) == {"Yes": 2, "No": 2}


def test_provenance_of_a_line(recipe, tmp_path):
    out = tmp_path / "made.jsonl"
    with chat_server(good_reply) as asked:
        write(jobs_of(recipe, tmp_path)[:1], asked.url, out)
    (line,) = json_lines(out)
    assert line["generator"] == {"backend": "openai", "model": "m", "prompt": 1, "seed": 0, "attempt": 1}
    assert line["status"] == "accepted" and line["time"].endswith("Z") and len(line["content"]) == 2


def test_malformed_then_drifted_then_right(recipe, tmp_path):
    """Two refusals with their reasons, told to the model, and the third reply is taken."""
    (job,) = [j for j in jobs_of(recipe, tmp_path) if j.style == "yn"][:1]

    def reply(text, number):
        if number == 0:
            return '[{"question_index": 1, '
        value = json.loads(good_reply(text, number))
        if number == 1:
            value = [{**item, "question_index": k} for k, item in enumerate(value)]
        return json.dumps(value)

    out = tmp_path / "made.jsonl"
    with chat_server(reply) as asked:
        tally = write([job], asked.url, out)
    assert (tally.requests, tally.accepted) == (3, 1)
    assert "An earlier reply was refused" not in asked.text(0)
    assert "refused: unparsable JSON" in asked.text(1)
    assert "refused: 'question_index' does not run from 1 to 2" in asked.text(2)
    entries = load_answers(out).entries
    assert [e.accepted for e in entries] == [False, False, True] and entries[2].generator["attempt"] == 3
    assert "reply" in json_lines(out)[0]


def test_two_retries_then_native(recipe, tmp_path):
    jobs, out = jobs_of(recipe, tmp_path), tmp_path / "s" / "made.jsonl"
    with chat_server(lambda text, number: "I am sorry.") as asked:
        tally = write(jobs, asked.url, out)
        assert (tally.requests, tally.accepted, tally.given_up) == (24, 0, 8)
        assert tally.refused == {"unparsable JSON (no JSON object or array)": 24}
        again = write(jobs, asked.url, out)
        assert again.requests == 0 and again.before == 8 and len(asked.bodies) == 24
        other = write(jobs[:1], asked.url, out, model="another")
        assert other.requests == 3  # another model gets its own attempts
    folder = DataFolder.open(build(recipe, data_dir=tmp_path / "d"))
    assert folder.manifest["styles"]["train"] == {"word": 20}
    told = folder.manifest["transforms"][0]["styles"]["yn"]
    assert told["short_by"] == 2 and told["reasons"] == {"refused: unparsable JSON (no JSON object or array)": 2}


def test_a_server_error_is_tried_again(recipe, tmp_path):
    with chat_server(lambda text, number: (500, "oops") if number == 0 else good_reply(text, number)) as asked:
        tally = write(jobs_of(recipe, tmp_path)[:2], asked.url, tmp_path / "made.jsonl")
    assert len(asked.bodies) == 3 and tally.accepted == 2


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_server_that_dies_costs_nothing_that_was_answered(recipe, tmp_path, concurrency):
    """Five answers, then errors only: the call fails; the next one asks for what is missing and nothing else."""
    jobs, out = jobs_of(recipe, tmp_path), tmp_path / "made.jsonl"
    with chat_server(lambda text, number: good_reply(text, number) if number < 5 else (503, "down")) as asked:
        with pytest.raises(DataError, match="503"):
            write(jobs, asked.url, out, concurrency=concurrency)
    kept = load_answers(out).entries
    assert len(kept) == 5 and all(e.accepted for e in kept)
    with chat_server(good_reply) as asked:
        tally = write(jobs, asked.url, out, concurrency=concurrency)
        assert tally.before == 5 and len(asked.bodies) == 3
    assert len({(e.id, e.style) for e in load_answers(out).entries}) == 8


def test_interruption_and_resuming(recipe, tmp_path):
    """A stop at the fourth request: all other replies are kept, and the next call asks for what is missing only."""
    jobs, out = jobs_of(recipe, tmp_path), tmp_path / "made.jsonl"

    class Stopping(OpenAiBackend):
        def complete(self, prompts):
            replies = super().complete(prompts)
            if len(asked.bodies) == 4:
                raise KeyboardInterrupt
            return replies

    with chat_server(good_reply) as asked:
        backend = Stopping(asked.url, "m", timeout=20)
        with pytest.raises(Interrupted, match="answer.s. of this call are kept"):
            write_answers(jobs, "none", backend, out=out, normalise=normalise, limits=LIMITS)
        kept, sent = len(load_answers(out).entries), len(asked.bodies)
        assert 3 <= kept == sent - 1  # the fourth was lost; one more may have been under way
        write(jobs, asked.url, out)
        assert len(asked.bodies) == sent + 8 - kept
    entries = load_answers(out).entries
    assert len(entries) == len({(e.id, e.style) for e in entries}) == 8


def test_a_torn_line_is_asked_again(recipe, tmp_path):
    jobs, out = jobs_of(recipe, tmp_path), tmp_path / "made.jsonl"
    with chat_server(good_reply) as asked:
        write(jobs[:2], asked.url, out)
        out.write_bytes(out.read_bytes()[:-20])
        assert load_answers(out).torn == 1
        tally = write(jobs[:2], asked.url, out)
    assert tally.before == 1 and len(asked.bodies) == 3
    found = load_answers(out)
    assert found.torn == 0 and len(found.entries) == 2  # the next line's writer cuts it off


def test_answers_to_an_older_version_of_a_row_are_asked_for_again(recipe, tmp_path):
    jobs, out = jobs_of(recipe, tmp_path), tmp_path / "made.jsonl"
    with chat_server(good_reply) as asked:
        write(jobs[:1], asked.url, out)
        out.write_text(out.read_text().replace(load_answers(out).entries[0].source, "0" * 16))
        assert write(jobs[:1], asked.url, out).accepted == 1
    assert load_answers(out).of(jobs[0].row, jobs[0].style)[-1].accepted


def test_requests_run_side_by_side(recipe, tmp_path):
    """Every request waits until three are there: with less than three at a time the barrier would break."""
    barrier = threading.Barrier(3, timeout=10)

    def reply(text, number):
        barrier.wait()
        return good_reply(text, number)

    with chat_server(reply) as asked:
        tally = write(jobs_of(recipe, tmp_path)[:6], asked.url, tmp_path / "made.jsonl", concurrency=3)
    assert tally.accepted == 6


def test_groups_for_a_backend_that_takes_several(recipe, tmp_path):
    class Local:
        name, model, seed, batch = "hf", "here", 0, 3

        def __init__(self):
            self.sizes = []

        def complete(self, prompts):
            self.sizes.append(len(prompts))
            return [good_reply(p.text, 0) for p in prompts]

    backend = Local()
    tally = write_answers(
        jobs_of(recipe, tmp_path), "none", backend, out=tmp_path / "m.jsonl", normalise=normalise, limits=LIMITS
    )
    assert backend.sizes == [3, 3, 2] and tally.accepted == 8


def test_one_writer(recipe, tmp_path):
    out = tmp_path / "made.jsonl"
    with FileLock(tmp_path / ".made.jsonl.lock"), pytest.raises(StateError, match="another process"):
        write(jobs_of(recipe, tmp_path), "http://127.0.0.1:9/v1", out)


def test_recipes_without_the_step_and_with_bad_rows(tmp_path):
    plain = load_recipe(recipe_file(tmp_path / "a", train=vqa_rows(4)))
    with pytest.raises(DataError, match="no asd transform"):
        asd_choice(plain, collect(plain, tmp_path / "p"))
    bad = load_recipe(recipe_file(tmp_path / "b", train=[llava("x", answer="")], transforms=[{"use": "asd"}]))
    with pytest.raises(DataError, match="empty answer"):
        asd_choice(bad, collect(bad, tmp_path / "p"))
