"""Greedy answers with the tiny model."""

import os
from types import SimpleNamespace

import pytest
import torch

from mcit.core import files
from mcit.core.errors import ConfigError, Interrupted
from mcit.data.collate import collate
from mcit.data.encode import Encoder
from mcit.evals import predictions as stored
from mcit.evals.filters.base import Filter
from mcit.evals.generate import predict
from mcit.evals.generator import Generator
from mcit.models.load import load_processor
from scripts.inject.faultpoints import Fault, Killed, Operations
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.rows import picture, row

TOKENS = 4


@pytest.fixture(scope="module")
def model(cache):
    os.environ["MCIT_CACHE"] = str(cache)
    torch.set_num_threads(1)
    return tiny_model()


@pytest.fixture(scope="module")
def encoder(model):
    return Encoder(load_processor(tiny_path()))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    names = [picture(folder, f"{i}.png", colour=(40 * i, 200 - 30 * i, 90)) for i in range(3)]
    asked = [
        ("<image>\nWhat is it?", names[:1]),
        ("Say something short", []),
        ("<image>\nWhich colour is shown here?", names[1:2]),
        ("Hello", []),
        ("<image>\nYes?", names[2:]),
    ]
    return [
        row(text, "gold", id=f"r{i}", images=tuple(images), root=str(folder)) for i, (text, images) in enumerate(asked)
    ]


def by_hand(model, encoder, one) -> list[int]:
    """Greedy decoding of one row without padding, cache or generate(): argmax of the last position, again and again."""
    sample = encoder.prompt(one)
    batch = collate([sample], stream="t", pad_id=encoder.pad_id)
    ids = batch.input_ids_BT
    out = []
    for _ in range(TOKENS):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **batch.pixels).logits[0, -1]
        token = int(logits.argmax())
        if token == encoder.end_token_id:
            break
        out.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return out


def run(model, encoder, rows, out, **kwargs):
    predict(model, encoder, rows, out=out, batch=2, max_new_tokens=TOKENS, device="cpu", **kwargs)
    return stored.read_predictions(out)


def test_equals_decoding_by_hand(model, encoder, rows, tmp_path) -> None:
    """Left padding, mixed batches and the cache must not change what a row's answer is."""
    found = run(model, encoder, rows, tmp_path)
    assert [p["id"] for p in found] == [r.id for r in rows]
    assert [p["index"] for p in found] == list(range(len(rows)))
    for one, p in zip(rows, found, strict=True):
        ids = by_hand(model, encoder, one)
        text = encoder.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert (p["text"], p["tokens"], p["truncated"]) == (text, len(ids), len(ids) == TOKENS)
        assert p["gold"]["answer"] == "gold"
        assert p["question"] == one.question


class OnOtherRanks:
    """Embeddings whose weights show no rows, as ZeRO-3 has them between passes."""

    weight = torch.empty(0)

    def __init__(self, module):
        self._module = module

    def __call__(self, ids):
        return self._module(ids)


def test_a_model_whose_weights_are_on_other_ranks_answers(model, encoder, rows, tmp_path, monkeypatch) -> None:
    plain = run(model, encoder, rows, tmp_path / "plain")
    sharded = OnOtherRanks(model.get_input_embeddings())
    monkeypatch.setattr(type(model), "get_input_embeddings", lambda self: sharded)
    assert run(model, encoder, rows, tmp_path / "sharded") == plain


def test_left_over_generation_settings_do_not_count(model, encoder, rows, tmp_path) -> None:
    plain = run(model, encoder, rows, tmp_path / "plain")
    own = model.generation_config
    settings = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 9.0, "num_beams": 3, "min_new_tokens": 3}
    leftover = type(own)(**{**own.to_dict(), **settings, "suppress_tokens": list(range(0, 250, 2))})
    model.generation_config = leftover
    model.train()
    model.model.vision_tower.eval()
    try:
        again = run(model, encoder, rows, tmp_path / "again")
        assert model.generation_config is leftover
        assert model.training
        assert not model.model.vision_tower.training
    finally:
        model.generation_config = own
        model.eval()
    assert again == plain


def test_stops_at_the_end_token(model, encoder, rows, tmp_path, monkeypatch) -> None:
    """A filter that asks for token 70, then for the end: one token, not truncated; without an end: truncated."""

    class Ends(Filter):
        def logits(self, step, scores_BV, ctx):
            out = torch.full_like(scores_BV, -1e9)
            out[:, 70 if step == 0 else encoder.end_token_id] = 0.0
            assert len(ctx.rows) == len(scores_BV)
            assert ctx.input_ids_BT.shape[1] == ctx.prompt_length + step
            return out

    monkeypatch.setattr("mcit.evals.generate.load_filters", lambda names: [Ends()])
    found = run(model, encoder, rows, tmp_path, filters=["ends"])
    expected = encoder.processor.tokenizer.decode([70])
    assert {(p["text"], p["tokens"], p["truncated"]) for p in found} == {(expected, 1, False)}
    assert stored.recorded_settings(tmp_path)["filters"][0]["use"] == "ends"


def test_filters_apply_in_listed_order(model, encoder, rows, tmp_path, monkeypatch) -> None:
    class First(Filter):
        def text(self, answer, row):
            return answer + "1"

    class Second(Filter):
        def text(self, answer, row):
            return answer + row.id

    monkeypatch.setattr("mcit.evals.generate.load_filters", lambda names: [First(), Second()])
    assert all(p["text"].endswith("1" + p["id"]) for p in run(model, encoder, rows[:2], tmp_path, filters=["a", "b"]))


def test_unknown_filter_is_refused_before_anything_is_made(model, encoder, rows, tmp_path) -> None:
    with pytest.raises(ConfigError, match="no 'stripp'"):
        run(model, encoder, rows, tmp_path, filters=["stripp"])


def test_progress_counts_rows(model, encoder, rows, tmp_path) -> None:
    seen = []
    reporter = SimpleNamespace(progress=seen.append, line=print)
    run(model, encoder, rows, tmp_path, reporter=reporter, label="after-01/letter")
    assert [(s.phase, s.name, s.done, s.total) for s in seen] == [("eval", "after-01/letter", n, 5) for n in (2, 4, 5)]
    assert {(s.stage, s.stages) for s in seen} == {(0, 0)}  # no stage: nobody said which
    assert seen[-1].left_stage_s == 0.0


def test_time_left_follows_from_what_this_process_made(model, encoder, rows, tmp_path, monkeypatch) -> None:
    """Batches of 2, 2 and 1 rows, 10 s each: after 2 rows 10/2 s a row for 3 more are 15 s, after 4 rows 20/4 x 1 = 5 s.

    Continued after the first batch, with a batch in 6 s: of the 4 rows that are there 2 were made now: 6/2 x 1 = 3 s.
    """
    seen, asked = [], iter([True, False, False])
    ticks = iter([100.0, 110.0, 200.0, 206.0, 220.0, 300.0, 310.0, 320.0, 330.0])
    monkeypatch.setattr("mcit.evals.generate.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    reporter = SimpleNamespace(progress=seen.append, line=print)
    with pytest.raises(Interrupted, match="2 of 5"):
        run(model, encoder, rows, tmp_path / "cut", reporter=reporter, stop=lambda: next(asked))
    run(model, encoder, rows, tmp_path / "cut", reporter=reporter)
    assert [(s.done, s.left_stage_s) for s in seen] == [(2, 15.0), (4, 3.0), (5, 0.0)]
    seen.clear()
    run(model, encoder, rows, tmp_path / "whole", reporter=reporter)
    assert [(s.done, s.left_stage_s) for s in seen] == [(2, 15.0), (4, 5.0), (5, 0.0)]


def test_killed_at_every_write_gives_equal_bytes(model, encoder, rows, tmp_path, monkeypatch) -> None:
    """Batches of 2, 2 and 1 rows. A kill at any durable operation, then the same call: same bytes, nothing left."""
    run(model, encoder, rows, tmp_path / "whole")
    whole = (tmp_path / "whole" / stored.PREDICTIONS).read_bytes()

    def die(*_):
        raise Killed

    kills = 0
    for n in range(1, 50):
        out = tmp_path / str(n)
        try:
            with Operations(out, Fault(n), kinds={"create", "rename", "unlink"}, kill=die):
                run(model, encoder, rows, out)
            break
        except Killed:
            kills += 1
        files.remove_temporaries(out)  # as the next start of a run does
        run(model, encoder, rows, out)
        assert (out / stored.PREDICTIONS).read_bytes() == whole
        assert sorted(p.name for p in out.iterdir()) == [stored.GENERATION, stored.PREDICTIONS]
    assert kills >= 9  # a header, three batches, twice two operations for the final files, one removal


def test_kept_batches_are_not_made_again(model, encoder, rows, tmp_path, monkeypatch) -> None:
    """Killed in the third of three batches, the second one torn: exactly the second and the third are made again."""
    made, calls, limit = Generator.answer, [], 3

    def counted(self, asked, **kwargs):
        calls.append([r.id for r in asked])
        if len(calls) == limit:
            raise Killed
        return made(self, asked, **kwargs)

    monkeypatch.setattr(Generator, "answer", counted)
    with pytest.raises(Killed):
        run(model, encoder, rows, tmp_path)
    path = tmp_path / stored.PART
    path.write_bytes(path.read_bytes()[:-20])
    first, calls, limit = calls, [], 0
    run(model, encoder, rows, tmp_path)
    assert calls == first[1:]


def test_a_signal_stops_after_the_batch(model, encoder, rows, tmp_path) -> None:
    """Asked to stop in the second of three batches: two are kept. In the last batch there is nothing left to stop."""
    asked = iter([False, True])
    with pytest.raises(Interrupted, match="4 of 5") as caught:
        run(model, encoder, rows, tmp_path, stop=lambda: next(asked))
    assert caught.value.exit_code == 75
    assert len(run(model, encoder, rows, tmp_path, stop=lambda: True)) == 5


def test_full_disk_is_explained(model, encoder, rows, tmp_path, monkeypatch) -> None:
    import errno

    from mcit.core.errors import StateError

    def full(fd):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StateError, match="no space left"):
        run(model, encoder, rows[:1], tmp_path)
