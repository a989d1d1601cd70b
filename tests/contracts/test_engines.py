"""What every engine owes the loop, over one process, the sharded fake, DDP and DeepSpeed on two processes.

Each engine with several processes is one job that runs all checks of tests/fakes/engine_checks.py and writes its numbers;
the tests below read them. Distances are relative Frobenius norms against torch computing the whole step by hand in fp32.
"""

import json
import os
from pathlib import Path

import pytest

from mcit.core.errors import PlanError
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.engine.plain import PlainEngine
from tests.fakes.bench import plan_of
from tests.fakes.engine_checks import CHECKS, Kit, distance, mine, run_all, step, weights
from tests.fakes.jobs import start
from tests.fakes.models import tiny_path
from tests.fakes.sharded import ShardedEngine
from tests.fakes.toy import toy_batch

ROUNDING = 1e-6
"""Of sums of a few thousand fp32 numbers in another order."""
JOBS = ["ddp", "zero1", "zero2", "zero3", "zero2 optimizer", "zero3 parameters"]
ENGINES = ["plain", "fake"] + [
    pytest.param(job, marks=[pytest.mark.distributed, pytest.mark.timeout(1200)]) for job in JOBS
]
PROCESSES = 2


@pytest.fixture(scope="session")
def given(tmp_path_factory, cache):
    """Two steps of one plain process, its checkpoint, and where two more steps lead."""
    folder = tmp_path_factory.mktemp("given")
    before = os.environ.get("MCIT_CACHE")
    os.environ["MCIT_CACHE"] = str(cache)
    tiny_path()
    model, engine = Kit(PlainEngine, folder, folder).build()
    for i in range(4):
        if i == 2:
            engine.save(folder / "plain")
        step(engine, mine(toy_batch(model, seed=i), 1))
    save_tensors(folder / "straight.safetensors", weights(engine))
    if before is None:
        os.environ.pop("MCIT_CACHE")
    else:
        os.environ["MCIT_CACHE"] = before
    return folder


@pytest.fixture(scope="session")
def measured(tmp_path_factory, cache, given):
    """By engine: what each rank measured, and the folder of its checkpoints; jobs run when first asked for."""
    found = {}

    def of(engine):
        if engine not in found:
            folder = tmp_path_factory.mktemp(engine.replace(" ", "-"))
            if engine in ("plain", "fake"):
                made = run_all(PlainEngine if engine == "plain" else ShardedEngine, folder, given)
                found[engine] = [made], folder
            else:
                found[engine] = _job(engine, folder, given, cache), folder
        return found[engine]

    return of


def _job(engine, folder, given, cache):
    kind, _, offload = engine.partition(" ")
    arguments = ["plain" if kind == "ddp" else kind, offload or "none", str(folder), str(given)]
    run = start("tests.fakes.engine_job", *arguments, processes=PROCESSES, cache=cache)
    files = [folder / f"results-{rank}.json" for rank in range(PROCESSES)]
    assert all(file.is_file() for file in files), run.stderr[-4000:]
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture
def results(request, measured):
    """The numbers of one check, rank by rank."""

    def of(engine, check):
        out = [rank.get(check, {"error": "an earlier check failed"}) for rank in measured(engine)[0]]
        for found in out:
            assert "error" not in found, found["error"]
        return out

    return of


def ranks_of(engine):
    return 1 if engine in ("plain", "fake") else PROCESSES


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def test_loss_and_gradient_are_the_same_for_any_split(engine, results):
    """Rows with 5, 3, 2 and 1 answer tokens, cut into micro-batches and ranks, against all four in one forward."""
    for found in results(engine, "loss_is_the_same_for_any_split"):
        for size in (1, 2):
            assert found[f"gradient {size}"] < ROUNDING and found[f"loss {size}"] < ROUNDING
            assert found[f"tokens {size}"] == 4 * 30


def test_an_edit_between_backward_and_step_reaches_the_weights(engine, results):
    for found in results(engine, "an_edit_reaches_the_weights"):
        assert found["edited moved"] == 0 and found["moved"] > 10 and found["scaled"] == 0


def test_a_streamed_penalty_is_autograd(engine, results):
    for found in results(engine, "a_streamed_penalty_is_autograd"):
        assert found["gradient"] < ROUNDING and found["value"] < ROUNDING


def test_discard_and_rehearsal_leave_no_trace(engine, results):
    assert all(found["same"] for found in results(engine, "discard_leaves_no_trace"))


def test_a_tensor_without_gradient_shows_no_old_one(engine, results):
    for found in results(engine, "gradients_do_not_pile_up"):
        assert list(found.values()) == [0.0] * 3


def test_inner_states_and_passes_that_end_early(engine, results):
    for found in results(engine, "inner_states_and_passes_that_end_early"):
        assert found["gradient"] < ROUNDING and found["shape"] == [2, 30, 64] and found["after"]
        assert found["layers"] == ["1"] and found["tokens"] == 0


def test_clipping_comes_after_the_edits(engine, results):
    """100 |w|^2 makes a norm of 200 |w| or so, clipped to 1e-3: first moments have 0.1 of that."""
    for found in results(engine, "clipping_comes_after_the_edits"):
        assert found["norm"] > 100 and found["reported"] < ROUNDING and found["clipped"] < ROUNDING


def test_gradient_checkpointing_changes_nothing(engine, results):
    for found in results(engine, "gradient_checkpointing_changes_nothing"):
        assert found["on"] and found["gradient"] < ROUNDING


def test_text_and_images_on_different_ranks(engine, results):
    for found in results(engine, "text_and_images_on_different_ranks"):
        for order in (0, 1):
            assert found[f"gradient {order}"] < ROUNDING and found[f"loss {order}"] < ROUNDING
            assert found[f"finite {order}"]


def test_steps_without_images_leave_the_projector(engine, results):
    """Neither weight decay nor a step count: torch passes over tensors without a gradient, so every engine does."""
    for found in results(engine, "steps_without_images_leave_the_projector"):
        assert found["unmoved"] and found["change"] < 1e-5


def test_steps_without_images_leave_a_trained_tower(engine, results):
    for found in results(engine, "steps_without_images_leave_a_trained_tower"):
        assert found["vision"] > 20 and (found["moved"], found["others still"]) == (0, 0)


def test_a_rank_without_rows_takes_part(engine, results):
    for found in results(engine, "a_rank_without_rows_takes_part"):
        assert found["gradient"] < ROUNDING and found["rows"] == found["expected rows"]


def test_a_loss_that_skips_the_head_or_everything(engine, results):
    for found in results(engine, "a_loss_that_skips_the_head_or_everything"):
        assert found["gradient"] < ROUNDING and found["shape"] == [2, 30, 64]


def test_frozen_entries_stay_exactly(engine, results):
    """Every third entry of every tensor, against momentum and weight decay; all others move."""
    for found in results(engine, "frozen_entries_stay_exactly"):
        assert found["kept"] and found["moved"] > 0.99 and found["live"]


def test_a_group_set_to_zero_stays_there(engine, results):
    for found in results(engine, "a_group_set_to_zero_stays_there"):
        assert found["weight"] == 0 and found["moments"] == 0 and found["others"] > 40 and found["seen"] > 0


def test_a_checkpoint_continues_bitwise(engine, results):
    rng = [f"rng/rank-{rank:03d}.safetensors" for rank in range(ranks_of(engine))]
    for found in results(engine, "a_checkpoint_continues_bitwise"):
        assert found["same"] and found["moments"] and found["rng"] and found["notes"] == []
        assert found["files"] == ["engine.json", "model.safetensors", "optimizer.safetensors", *rng]


def test_the_next_stage_goes_on_with_the_moments(engine, results):
    for found in results(engine, "the_next_stage_goes_on_with_the_moments"):
        assert found["same"] and found["anew"] > 1e-3 and found["notes"] == []


def test_a_full_model_checkpoint_continues_bitwise(engine, results):
    for found in results(engine, "a_full_model_checkpoint_continues_bitwise"):
        assert found["same"] and found["finished"] and found["tensors"] > 20


def test_a_checkpoint_of_plain_continues(engine, results):
    """Two further steps from a checkpoint of one plain process, against that process going on."""
    for found in results(engine, "a_checkpoint_of_plain_continues"):
        assert found["change"] < 1e-5 and found["notes"] == (ranks_of(engine) > 1)


def test_plain_continues_from_its_checkpoint(engine, results, measured):
    """One plain process from the checkpoint this engine wrote after step 2, against this engine's own steps 3 and 4."""
    results(engine, "a_checkpoint_continues_bitwise")
    home = measured(engine)[1] / "a_checkpoint_continues_bitwise"
    model, plain = Kit(PlainEngine, home, home).build()
    plain.load(home / "same")
    start = weights(plain)
    for i in range(2, 4):
        step(plain, mine(toy_batch(model, seed=i), 1))
    now, expected = weights(plain), load_tensors(home / "straight.safetensors")
    moved = {n: expected[n] - start[n] for n in start}
    assert distance({n: now[n] - start[n] for n in start}, moved) < 1e-5


def test_several_passes_of_a_step(engine, results):
    """Four rows of 30 tokens are counted once, however many passes go over them."""
    for found in results(engine, "several_passes_of_a_step"):
        assert found["gradient"] < ROUNDING and found["dot"] < ROUNDING and found["norm"] < ROUNDING
        assert found["back"] and found["moved"] > 0.1 and (found["cleared"], found["tokens"]) == (0, 120)


def test_effective_gradients_are_those_of_the_matrix(engine, results):
    for found in results(engine, "effective_gradients_are_those_of_the_matrix"):
        assert found["gradient"] < ROUNDING and found["matrices"] > 10


def test_the_reference_is_the_stage_start(engine, results):
    for found in results(engine, "the_reference_is_the_stage_start"):
        assert found["same"] and found["moved"] > 1e-3 and found["back"]


def test_finish_leaves_a_plain_model(engine, results):
    """After each of three stages: whole weights, equal on all ranks and to what the engine held; no trace of it."""
    for found in results(engine, "finish_leaves_a_plain_model"):
        assert (found["empty"], found["hooks"], found["attributes"]) == (0, 0, 0)
        assert found["equal"] and found["frozen"] and found["ranks"] and found["dtypes"] == ["torch.float32"]


def test_a_bf16_base_trains_fp32_tensors(engine, results):
    for found in results(engine, "a_bf16_base_trains_fp32_tensors"):
        assert found["gradient"] < ROUNDING and found["frozen"] and found["equal"]
        assert found["dtypes"] == ["torch.float32"]


def test_a_quantised_base_trains(engine, results):
    """nf4 and int8 below LoRA and a full-precision projector. The plan keeps such a base off zero3, which would shard it."""
    if engine.startswith("zero3"):
        keep = {"rank": 4, "alpha": 8, "also_train": ["projector"], "carry": "keep"}
        with pytest.raises(PlanError, match="zero3 shares out parameters"):
            plan_of(base={"family": "tiny", "dtype": "nf4"}, engine={"kind": "zero3"}, defaults={"adapter": keep})
        return
    for found in results(engine, "a_quantised_base_trains"):
        for dtype in ("nf4", "int8"):
            assert found[f"{dtype} gradient"] < ROUNDING and found[f"{dtype} moved"] > 1e-3
            assert found[f"{dtype} frozen"] and found[f"{dtype} whole"]
            assert found[f"{dtype} dtypes"] == ["torch.float32"]


def test_local_parts_cover_every_tensor_once(engine, results):
    for found in results(engine, "local_parts_cover_every_tensor_once"):
        assert found["covered"] and found["detached"]


def test_a_bad_row_is_named_on_every_rank(engine, results):
    for found in results(engine, "a_bad_row_is_named_on_every_rank"):
        assert found["named"] and found["unchanged"] and found["goes on"]


def test_one_engine_twice_is_bitwise(engine, results):
    assert all(found["same"] for found in results(engine, "one_engine_twice_is_bitwise"))


def test_every_check_has_a_test():
    source = Path(__file__).read_text()
    assert all(f'"{name}"' in source for name in CHECKS)
