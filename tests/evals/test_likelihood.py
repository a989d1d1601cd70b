"""Log-probabilities of answers: by torch alone, in any batch, continued after a stop, shared over ranks."""

from weakref import WeakKeyDictionary

import pytest
import torch

from mcit.core.errors import Interrupted, StateError
from mcit.data.encode import Encoder
from mcit.engine.layers import blocks_of
from mcit.evals import likelihood
from mcit.evals.likelihood import choice, likelihoods, moments, read_likelihoods
from mcit.models.load import load_processor
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.ranks import on_ranks
from tests.fakes.rows import picture, row


@pytest.fixture(scope="module")
def parts(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        return tiny_model().eval(), Encoder(load_processor(tiny_path()))


ROWS = [row("Is it red?", answer, id=f"r{k}") for k, answer in enumerate(("yes", "no", "maybe so", "no, it is not"))]
ROWS.append(row("Is it red?", "yes", "Are you sure?", "certainly", id="two"))


def by_hand(model, encoder, one):
    """Sum of log softmax at the tokens of the last answer, one row at a time."""
    sample = encoder.encode(one)
    prompt = len(encoder.prompt(one).input_ids_T)
    ids = sample.input_ids_T
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
    return [float(logits[p - 1, ids[p]]) for p in range(prompt, len(ids)) if sample.labels_T[p] != -100]


def test_by_hand_and_only_the_last_answer(parts, tmp_path):
    model, encoder = parts
    model.train()
    lines = likelihoods(model, encoder, ROWS, out=tmp_path, batch=3, device="cpu", settings={"lineage": "x"})
    assert model.training and [line["id"] for line in lines] == [r.id for r in ROWS]
    model.eval()
    for line, one in zip(lines, ROWS, strict=True):
        expected = by_hand(model, encoder, one)
        assert line["tokens"] == len(expected) and line["logprobs"] == pytest.approx(expected, abs=1e-4)
        assert line["sum"] == pytest.approx(sum(expected), abs=1e-4)
    assert read_likelihoods(tmp_path) == lines


def test_stopped_and_continued_and_two_ranks_end_in_the_same_bytes(parts, tmp_path):
    model, encoder = parts
    given = {"batch": 2, "device": "cpu"}
    likelihoods(model, encoder, ROWS, out=tmp_path / "one", **given)
    with pytest.raises(Interrupted, match="they are kept"):
        likelihoods(model, encoder, ROWS, out=tmp_path / "two", stop=lambda: True, **given)
    with pytest.raises(StateError, match="no finished likelihood"):
        read_likelihoods(tmp_path / "two")
    likelihoods(model, encoder, ROWS, out=tmp_path / "two", **given)
    on_ranks(2, lambda ranks: likelihoods(model, encoder, ROWS, out=tmp_path / "ranks", ranks=ranks, **given))
    for name in ("two", "ranks"):
        for file in ("predictions.jsonl", "generation.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_what_is_there_is_not_made_again_and_damage_is_told(parts, tmp_path):
    model, encoder = parts
    given = {"out": tmp_path, "batch": 4, "device": "cpu"}
    first = likelihoods(model, encoder, ROWS, **given)
    assert likelihoods(None, encoder, ROWS, **given) == first
    with pytest.raises(AttributeError):
        likelihoods(None, encoder, ROWS, settings={"lineage": "other"}, **given)
    (tmp_path / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(StateError, match="checksum differs"):
        read_likelihoods(tmp_path)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Three answers about one picture, two about another, in one order of batches of five."""
    folder = tmp_path_factory.mktemp("pictures")
    names = [picture(folder, f"{k}.png", colour=(90 * k, 200, 30)) for k in range(2)]
    asked = [("yes", 0), ("no", 0), ("maybe so", 0), ("yes", 1), ("no, it is not", 1)]
    return [
        row("<image>\nIs it red?", answer, id=f"p{k}", images=(names[n],), root=str(folder))
        for k, (answer, n) in enumerate(asked)
    ]


def test_a_picture_that_rows_share_is_computed_once_with_equal_values(parts, shown, tmp_path, monkeypatch):
    model, encoder = parts
    seen, own = [], model.forward

    def counted(*args, **kwargs):
        seen.append((kwargs["input_ids"].numel(), len(kwargs["pixel_values"])))
        return own(*args, **kwargs)

    monkeypatch.setattr(likelihood, "_REFUSED", WeakKeyDictionary())
    monkeypatch.setattr(model, "forward", counted)
    before = model.get_decoder().config._attn_implementation
    given = {"batch": 5, "device": "cpu"}
    padded = likelihoods(model, encoder, shown, out=tmp_path / "padded", share=False, **given)
    packed = likelihoods(model, encoder, shown, out=tmp_path / "packed", **given)
    assert len(seen) == 4, "padded; the trial, which is both; packed"
    assert [pictures for _, pictures in seen] == [5, 6, 2, 2] and seen[3][0] * 2 < seen[0][0]
    for one, other in zip(padded, packed, strict=True):
        assert one["hits"] == other["hits"] and one["body"] == other["body"] and one["id"] == other["id"]
        for key in ("logprobs", "mean", "variance"):
            assert one[key] == pytest.approx(other[key], abs=1e-4)
    assert model.get_decoder().config._attn_implementation == before and "forward" not in vars(blocks_of(model)[-1])


def test_a_model_that_gives_other_values_in_packs_is_padded(parts, shown, tmp_path, monkeypatch):
    model, encoder = parts
    monkeypatch.setattr(likelihood, "_REFUSED", WeakKeyDictionary())
    monkeypatch.setattr(likelihood, "difference", lambda padded, packed: "it is another model")
    given = {"batch": 5, "device": "cpu"}
    found = likelihoods(model, encoder, shown, out=tmp_path / "a", **given)
    assert found == likelihoods(model, encoder, shown, out=tmp_path / "b", share=False, **given)


def test_choices():
    lines = [{"sum": -2.0, "tokens": 1}, {"sum": -3.0, "tokens": 3}, {"sum": -2.0, "tokens": 1}]
    assert choice(lines, [(0, 1), (1, 2), (0, 2)]) == [0, 1, 0]
    assert choice(lines, [(0, 1), (2, 1)], mean=True) == [1, 1]


def test_hits_moments_and_where_the_end_token_is(parts, tmp_path):
    model, encoder = parts
    given = {"batch": 3, "device": "cpu"}
    for line, one in zip(likelihoods(model, encoder, ROWS, out=tmp_path, **given), ROWS, strict=True):
        sample, prompt = encoder.encode(one), len(encoder.prompt(one).input_ids_T)
        places = [p for p in range(prompt, len(sample.input_ids_T)) if sample.labels_T[p] != -100]
        with torch.no_grad():
            logp = model(input_ids=sample.input_ids_T[None]).logits[0].float().log_softmax(-1)
        best = [int(logp[p - 1].argmax()) == int(sample.input_ids_T[p]) for p in places]
        mean = [float((logp[p - 1].exp() * logp[p - 1]).sum()) for p in places]
        assert line["hits"] == best and line["mean"] == pytest.approx(mean, abs=1e-4)
        assert int(sample.input_ids_T[places[line["body"]]]) == encoder.end_token_id


def test_moments_by_hand():
    mean, variance = moments(torch.tensor([[0.7, 0.2, 0.1]]).log())
    assert float(mean) == pytest.approx(-0.801819, abs=1e-5) and float(variance) == pytest.approx(0.494387, abs=1e-5)
