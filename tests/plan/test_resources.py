import dataclasses
import json
import subprocess
import sys

import pytest

from mcit.cli.main import main
from mcit.core.errors import Problem
from mcit.core.schema import EngineConfig
from mcit.plan import resources
from mcit.plan.plan import make_plan, read_config
from mcit.plan.resources import (
    Machine,
    disk_problems,
    estimate,
    machine,
    memory_problems,
    resource_problems,
    roomy,
    suggestion,
    weights_of,
)
from mcit.runs.layout import RunLayout
from mcit.runs.run import find_run
from tests.fakes.bench import TINY, plan_of

GIB = 2**30


def of(**changes):
    plan = plan_of(**changes)
    return plan, estimate(plan, cuda=True)


def test_what_trains_is_what_the_plan_counts():
    from mcit.plan.preflight import skeleton, trained_parameters

    plan, found = of()
    assert [s.shape.trained for s in found.stages] == [trained_parameters(skeleton(plan), s) for s in plan.stages]
    assert all(s.shape.activations.traced for s in found.stages)
    assert found.batch.rows == 4 and found.batch.pixels["pixel_values"][0] == (4, 3, 32, 32)


def test_ranks_share_the_rows_of_a_step():
    assert estimate(plan_of(), nproc=8, cuda=True).batch.rows == 1


def test_disk_by_hand():
    """Two stages of P trained numbers: 4 P each; keep 2 and the one being written: three checkpoints of 12 P. Without: one."""
    plan, found = of(checkpoint={"every": 1, "keep": 2})
    P = found.worst.shape.trained
    assert found.disk == 2 * 4 * P + 3 * 12 * P
    assert of(checkpoint={"every": 0})[1].disk == 2 * 4 * P + 12 * P
    assert found.checkpoint_seconds == pytest.approx(12 * P / 500e6)


def test_tokens_are_rows_times_their_mean_length():
    plan, found = of()
    lengths = [s.positions for s in resources.train_sizes(plan, plan.stages[0].tasks[0])[-24:]]
    rows = plan.stages[0].steps * plan.stages[0].optim.batch
    assert found.stages[0].tokens == round(rows * sum(lengths) / len(lengths))


def test_method_state_is_host_memory_and_on_disk():
    plain = of()[1].worst
    l2 = of(defaults={"methods": [{"name": "l2"}]})[1].worst
    assert (
        l2.shape.method_state == 4 * l2.shape.trained and l2.rows[0].host == plain.rows[0].host + 4 * l2.shape.trained
    )
    assert l2.checkpoint == plain.checkpoint + 4 * l2.shape.trained and l2.shape.penalty


def test_method_state_equals_what_a_run_stored(tmp_path):
    """The estimate is the most a method can hold: RegLoRA's is reached when no position is chosen twice."""
    from tests.fakes.bench import run_plan

    for methods in ([{"name": "l2"}], [{"name": "reglora"}]):
        plan = plan_of(defaults={"methods": methods})
        run_plan(plan, tmp_path / methods[0]["name"])
        for stage, found in zip(plan.stages, estimate(plan, cuda=False).stages, strict=True):
            file = tmp_path / methods[0]["name"] / stage.folder / "methods" / methods[0]["name"] / "tensors.safetensors"
            from mcit.core.tensorfile import load_tensors

            real = sum(t.nbytes for t in load_tensors(file).values())
            assert real <= found.shape.method_state <= 2 * real, (methods, stage.folder)


POOL = {"name": "gere", "recipe": "general/tiny", "per_step": 2}


@pytest.mark.parametrize("variant", ["tm", "l2", "kl", "label"])
def test_what_gere_keeps_per_run_is_counted_once(variant, tmp_path):
    """On disk and mapped, so no state of a stage. Rows with a picture count 16 slots that are not stored: at most 0.35 off."""
    from tests.fakes.bench import run_plan

    methods = [{**POOL, "variant": variant, "top_k": 4, "weight": 1.0}]
    plan = plan_of(defaults={"methods": methods, "max_steps": 1})
    found, without = estimate(plan, cuda=False), estimate(plan_of(defaults={"max_steps": 1}), cuda=False)
    kept = found.stages[0].kept["gere"]
    assert [s.kept["gere"] for s in found.stages] == [kept, kept] and found.disk == without.disk + kept
    assert found.stages[0].shape.method_state == 0
    run_plan(plan, tmp_path / "run", blobs=tmp_path / "blobs", only=1)
    real = sum(path.stat().st_size for path in (tmp_path / "blobs").glob("*.safetensors"))
    assert (kept > 0) == (variant != "label") and abs(kept - real) <= 0.35 * real, (kept, real)


def test_a_base_loaded_beside_the_stages_model_is_counted_where_a_method_starts_late():
    tiny = plan_of(defaults={"methods": [POOL]})
    assert [s.shape.base_copy for s in estimate(tiny, cuda=False).stages] == [0, 0]
    first, second = TINY["stages"]
    late = estimate(plan_of(stages=[{**first, "methods": []}, {**second, "methods": [POOL]}]), cuda=False)
    weights = late.stages[1].shape.weights
    base = sum(4 * w.count for n, w in weights.items() if ".lora_" not in n)
    assert [s.shape.base_copy for s in late.stages] == [0, base] and base > 0
    assert all(row.activations >= base for row in late.stages[1].rows)


def test_reference_copies_leave_out_a_fresh_adapter():
    found = of(defaults={"methods": [{"name": "lwf"}]})[1].worst
    own = sum(4 * w.count for n, w in found.shape.weights.items() if w.trained and ".lora_" not in n)
    assert found.shape.reference == own > 0
    keep = {"rank": 4, "alpha": 8, "also_train": ["projector"], "carry": "keep"}
    second = of(defaults={"methods": [{"name": "lwf"}], "adapter": keep})[1].stages[1]
    assert second.shape.reference == 4 * second.shape.trained


def test_stages_that_stack_adapters_hold_the_earlier_ones():
    stack = {"rank": 4, "alpha": 8, "also_train": ["projector"], "carry": "stack"}
    first, second = of(defaults={"adapter": stack})[1].stages
    lora = sum(w.count for n, w in first.shape.weights.items() if ".lora_" in n)
    assert second.rows[0].frozen == first.rows[0].frozen + 4 * lora
    assert second.rows[0].activations >= first.rows[0].activations  # frozen pairs save nothing for backward in fp32


def test_quantised_bases_store_language_linears_small():
    plan = plan_of()
    model, _ = resources.stage_model(plan, plan.stages[0], cuda=True)
    weights = weights_of(model, plan.config.base.model_copy(update={"dtype": "nf4"}))
    small = {n for n, w in weights.items() if w.storage == "nf4"}
    assert small and all("language_model" in n and n.endswith("base_layer.weight") for n in small)


def test_suggestions_go_from_the_cheapest_engine_to_changes_that_would_fit():
    plan, found = of(engine={"micro_batch": 8, "workers": 0})
    assert "cheapest engine that fits 24.0 GiB per device: plain" in suggestion(plan, found, memory=24 * GIB)
    plain = found.worst.rows[0]
    less = dataclasses.replace(plain, activations=0).device + plain.activations * 9 // 10
    words = suggestion(plan, found, memory=less)
    assert words.startswith("nothing fits") and "plain would with engine.gradient_checkpointing: true" in words
    assert "not even with" in suggestion(plan, found, memory=1000)


def test_what_cannot_fit_is_a_problem_and_a_close_call_a_note():
    plan, found = of()
    row = found.worst.rows[0]
    assert memory_problems(plan, found, Machine(64 * GIB, row.device)) == []
    close = memory_problems(plan, found, Machine(64 * GIB, row.device - row.activations // 8))
    assert [p.level for p in close] == ["note"]
    (far,) = memory_problems(plan, found, Machine(64 * GIB, row.device // 2))
    assert (far.level, far.where) == ("problem", "engine") and "nothing fits" in far.fix


def test_offload_without_the_host_memory_for_it_is_a_problem():
    plan = plan_of(engine={"kind": "zero2", "offload": "optimizer", "workers": 0})
    found = estimate(plan, nproc=2, cuda=True)
    row = next(r for r in found.worst.rows if (r.kind, r.offload) == ("zero2", "optimizer"))
    need = max(row.host, found.worst.loading) * 2
    assert memory_problems(plan, found, Machine(need, 80 * GIB)) == []
    (problem,) = memory_problems(plan, found, Machine(need - 1, 80 * GIB))
    assert problem.level == "problem" and "host memory" in problem.what


def test_on_a_cpu_devices_and_host_memory_are_one():
    plan, found = plan_of(), estimate(plan_of(), nproc=2, cuda=False)
    row = found.worst.rows[0]
    assert row.reserve == 0
    assert memory_problems(plan, found, Machine(2 * row.device, None)) == []
    assert memory_problems(plan, found, Machine(row.device, None))[0].level == "problem"


def test_disk_that_is_not_there(tmp_path):
    _, found = of()
    assert disk_problems(found.disk, tmp_path / "runs") == []
    (problem,) = disk_problems(2**60, tmp_path / "runs")
    assert isinstance(problem, Problem) and "1073741824.0 GiB" in problem.what


def test_a_run_that_goes_on_needs_no_room_for_what_it_has(tmp_path, monkeypatch):
    plan, found = of()
    free = found.disk - 1000
    monkeypatch.setattr("shutil.disk_usage", lambda _: (10 * free, 9 * free, free))
    own, other = find_run(tmp_path, plan.config.name, plan.digest).layout, RunLayout(tmp_path / "other")
    assert "needs about" in resource_problems(plan, found, tmp_path)[0].what
    for layout, begun in ((other, other.root), (own, None)):
        for path, size in ((layout.stages / ".02-b.draft" / "x", 600), (layout.blobs / "y", 399)):
            path.parent.mkdir(parents=True)
            path.write_bytes(b"0" * size)
        assert resource_problems(plan, found, tmp_path, begun=begun)[0].where.startswith("--runs-dir")
        (layout.blobs / "z").write_bytes(b"0")
        assert resource_problems(plan, found, tmp_path, begun=begun) == []


def test_the_machine_has_memory():
    here = machine(EngineConfig(device="cpu"))
    assert here.host > GIB and here.device is None


def test_plan_prints_every_engine_and_names_the_one_that_fits(capsys):
    assert main(["plan", "tiny", "--gpu-memory", "24G"]) == 0
    out = capsys.readouterr().out
    assert "cheapest engine that fits 24.0 GiB per device: plain" in out
    assert all(word in out for word in ("plain*", "zero1", "zero2+opt", "zero3+par", "tokens: about", "disk: about"))
    assert main(["plan", "tiny", "--json", "--gpu-memory", "1K"]) == 0
    found = json.loads(capsys.readouterr().out)["estimate"]
    assert "nothing fits" in found["suggestion"] and len(found["stages"][0]["engines"]) == 8
    assert main(["plan", "tiny", "--gpu-memory", "much"]) == 3
    assert "--gpu-memory" in capsys.readouterr().err


def test_a_plan_that_cannot_fit_this_machine_is_refused_before_loading(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(resources, "machine", lambda engine: Machine(10**6, None))
    for verb in ("plan", "run"):
        assert main([verb, "tiny", "--runs-dir", str(tmp_path / "runs")]) == 3
        assert "of host memory with plain on 1 process(es), the machine has" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_plan_of_a_folder_model_with_absent_data_says_so(tmp_path, capsys):
    from tests.fakes.models import tiny_path

    recipe = tmp_path / "absent.yaml"
    recipe.write_text("name: absent\nsource: {kind: llava, train: nowhere/train.json, images: nowhere}\n")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"name: c\nbase: {{family: hf, model: {tiny_path()}, dtype: fp32}}\nstages: [{{recipe: {recipe}}}]\n"
    )
    assert main(["plan", str(config)]) in (2, 4)
    assert "absent" in capsys.readouterr().err


def test_ranks_of_other_machines_do_not_count_here(monkeypatch):
    """Eight ranks, two of them here: host memory of two, and what rank 0 gathers for a checkpoint."""
    plan, _ = of(checkpoint={"every": 5})
    found = estimate(plan, nproc=8, cuda=False)
    row = found.worst.rows[0]
    need = 2 * (row.host + row.device) + row.once
    assert row.once > 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_problems(plan, found, Machine(need, None)) == []
    (problem,) = memory_problems(plan, found, Machine(need - 1, None))
    assert "on 2 process(es)" in problem.what


def test_memory_surely_suffices_where_twice_what_is_needed_is_there(monkeypatch, tmp_path):
    """On a CPU alone, and where activations were traced; the loop then rehearses nothing."""
    plan = plan_of(engine={"micro_batch": 4, "workers": 0, "device": "cpu"})
    found = estimate(plan)
    plain = found.worst.rows[0]
    needed = plain.device + plain.host
    for memory, enough in ((2 * needed + 2, True), (2 * needed - 2, False)):
        monkeypatch.setattr(resources, "machine", lambda engine, m=memory: Machine(m, None))
        assert roomy(plan, found) is enough
    monkeypatch.setattr(resources, "machine", lambda engine: Machine(4 * needed, None))
    assert roomy(plan, found)
    assert make_plan(plan.config, runs_dir=tmp_path).roomy and not plan.roomy  # a plan for no machine does not know
    monkeypatch.setattr(resources, "uses_cuda", lambda engine: True)
    assert not roomy(plan, found)


@pytest.mark.slow
def test_a_plan_whose_parts_are_known_does_not_import_peft():
    """It would take longer than all the checks. An estimate reads what engines are told without loading one."""
    estimate(make_plan(read_config("tiny")[0]))
    code = "import sys; from mcit.cli.main import main; sys.exit(main(['plan', 'tiny']) or int('peft' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
