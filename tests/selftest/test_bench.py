"""`mcit doctor --bench` on the tiny shape, as a user starts it."""

import json

import pytest
import torch

from mcit.cli.main import main
from mcit.selftest import bench


@pytest.fixture(scope="module")
def found():
    """One whole measurement of two steps a side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_LEAST", 2)
        patch.setattr(bench, "_MOST", 2)
        patch.setattr(bench, "matmul_rate", lambda *args: 1e12)
        from mcit.selftest import workload

        cpu = torch.device("cpu")
        work = workload.of_shape("tiny", device=cpu, rows=4, questions=4)
        return bench.measure(work, device=cpu, limit=60, say=lambda text: None)


def test_sides_train_alike(found):
    """Packs, padding and a plain loop of transformers: the first losses, which training has changed."""
    assert list(found["sides"]) == ["packs", "padded", "plain"] and found["notes"] == []
    assert found["loss_difference"] < 1e-5
    assert all(first != last for first, _, last in found["losses"].values())


def test_rates_are_of_the_same_rows(found):
    positions = found["positions"]
    assert positions["packs"] < positions["rows"] < positions["padded"]
    for side in found["sides"].values():
        median = side["step_s"]["median"]
        assert side["rows_per_s"] == pytest.approx(4 / median)
        assert side["tokens_per_s"] == pytest.approx(positions["rows"] / median)
        assert side["utilisation"]["measured"] == pytest.approx(found["flops_per_step"] / median / 1e12)
        assert side["peak_gb"] is None


def test_answers_are_those_of_generate(found):
    answers = found["answers"]
    assert answers["equal"] == answers["compared"] == 4 and answers["refused"] == ""


def test_difference_is_relative_to_the_plain_loop():
    assert bench.difference({"packs": [1.0, 2.2], "padded": [1.0, 2.0], "plain": [1.0, 2.0]}) == pytest.approx(0.1)
    assert bench.difference({"packs": [1.0]}) == 0.0


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_the_command_prints_a_line_and_fails_where_losses_differ(found, gap, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", lambda *args, **kwargs: {**found, "loss_difference": gap})
    code = main(["doctor", "--bench", "--size", "tiny"])
    text = capsys.readouterr().out
    assert code == (3 if gap else 0) and ("FAILED" in text) == bool(gap)
    assert "LLaVA shape tiny, random weights on cpu, fp32, 5 rows a step" in text and "tokens/s" in text
    assert main(["doctor", "--bench", "--size", "tiny", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["alike"] is (gap == 0)


@pytest.mark.parametrize(
    ("given", "where"),
    [
        (["--rows", "3"], "--rows"),
        (["--bench", "--rows", "0"], "--rows"),
        (["--bench", "tiny", "--size", "7b"], "--size"),
        (["--bench", "--selftest"], "--bench"),
        (["--bench", "--nproc", "2"], "--nproc"),
        (["--bench", "--limit", "0"], "--limit"),
        (["--bench", "/no/such/folder"], "/no/such/folder"),
        (["--bench", "nothing"], "nothing"),
    ],
)
def test_bad_input(given, where, capsys):
    assert main(["doctor", *given]) == 2
    assert where in capsys.readouterr().err


def test_memory_that_runs_out_says_what_to_do(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(bench, "answer_rates", full)
    with pytest.raises(bench.TrainingError, match="memory ran out: CUDA out of memory") as caught:
        bench.measure(None, device=torch.device("cpu"), limit=1, say=lambda text: None)
    assert "--rows" in caught.value.problems[0].fix
