"""Quantised bases and 8-bit optimisers: what a plan refuses, and whole runs with them."""

import json
import shutil
import sys

import pytest
import torch

from mcit.core.errors import Interrupted, PlanError
from mcit.core.interfaces import Silent
from mcit.evals.predictions import read_predictions
from mcit.export.export import export_stage
from mcit.plan.plan import make_plan, parse_run
from mcit.plan.record import plan_json, resolved
from mcit.runs.run import open_run
from mcit.train.sequence import run_sequence
from tests.fakes.bench import TINY, plan_of, run_plan, tensors_of
from tests.fakes.models import tiny_path

KEEP = {"rank": 4, "alpha": 8, "carry": "keep"}
LOW = ("nf4", "int8")


def low(dtype="nf4", *, adapter=None, optim=None, **changes):
    """Settings of a plan on a quantised base."""
    defaults = {"adapter": {**KEEP, **(adapter or {})}}
    if optim:
        defaults["optim"] = {**TINY["defaults"]["optim"], **optim}
    defaults.update(changes.pop("defaults", {}))
    return {"base": {"family": "tiny", "dtype": dtype}, "defaults": defaults, **changes}


def refused(**changes):
    with pytest.raises(PlanError) as error:
        plan_of(**changes)
    return error.value.problems


# ---- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", LOW)
def test_merging_and_full_fine_tuning_are_refused_with_reason_and_cure(dtype):
    stages = [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno", "adapter": {"kind": "none"}}, {"recipe": "tiny/word"}]
    stages[2]["adapter"] = {**KEEP, "carry": "merge"}
    found = {p.where: p for p in refused(**low(dtype, stages=stages))}
    merge, full = found["stages[2].adapter.carry"], found["stages[1].adapter.kind"]
    assert len(found) == 2 and f"base.dtype is {dtype}" in merge.what
    assert "loses the update" in merge.what and "carry: keep" in merge.fix and "stack" in merge.fix
    assert "full fine-tuning" in full.what and "adapter.kind: lora" in full.fix


def test_the_default_carry_is_named_like_a_given_one():
    found = refused(base={"family": "tiny", "dtype": "nf4"})
    assert [p.where for p in found] == ["stages[0].adapter.carry", "stages[1].adapter.carry"]


@pytest.mark.parametrize("dtype", LOW)
def test_methods_that_change_weights_are_refused(dtype):
    hft = refused(**low(dtype, defaults={"methods": [{"name": "hft"}]}))
    assert {p.where for p in hft} == {"stages[0].methods[0] (hft)", "stages[1].methods[0] (hft)"}
    assert all("needs dtype:full" in p.what and "base.dtype: bf16" in p.fix for p in hft)
    reglora = refused(**low(dtype, defaults={"methods": [{"name": "reglora"}]}))
    assert all("needs carry:merge" in p.what and dtype in p.what for p in reglora)


@pytest.mark.parametrize("carry", ["keep", "stack"])
def test_methods_that_leave_the_base_alone_are_welcome(carry):
    methods = [{"name": "l2"}, {"name": "lwf"}, {"name": "replay"}]
    plan_of(**low(adapter={"carry": carry, "also_train": ["projector", "head"]}, defaults={"methods": methods}))


def test_a_missing_library_is_said_once_per_setting(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    found = refused(**low("int8", optim={"kind": "adamw8bit"}))
    assert [p.where for p in found] == ["base.dtype", "stages[0].optim.kind", "stages[1].optim.kind"]
    assert all("needs bitsandbytes" in p.what and p.fix for p in found)
    plan_of()


def test_a_folder_that_is_quantised_already_is_refused_for_any_dtype(tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(tiny_path(), copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    for dtype in ("bf16", "nf4"):
        found = refused(**{**low(), "base": {"family": "hf", "model": str(copy), "dtype": dtype}})
        assert any("quantised already (gptq)" in p.what and "full-precision" in p.fix for p in found)


def test_zero3_and_a_quantised_base_do_not_go_together():
    found = refused(**low(engine={"kind": "zero3", "micro_batch": 4}))
    assert any(p.where == "engine.kind" and "zero2" in p.fix for p in found)


@pytest.mark.parametrize("kind", ["adamw8bit", "paged_adamw", "paged_adamw8bit"])
def test_optimisers_of_the_library_are_for_the_plain_engine(kind):
    found = refused(engine={"kind": "zero1", "device": "cpu"}, defaults={"optim": {"kind": kind}})
    assert any("cannot run on zero1" in p.what and "adamw" in p.fix for p in found)
    assert any("pages moments" in p.what for p in found) is kind.startswith("paged")


def test_paging_needs_a_gpu_and_small_tensors_are_noted():
    found = refused(engine={"device": "cpu"}, defaults={"optim": {"kind": "paged_adamw"}})
    assert [p.where for p in found] == ["stages[0].optim.kind", "stages[1].optim.kind"]
    assert "a CPU cannot" in found[0].what
    plan = plan_of(defaults={"optim": {"kind": "adamw8bit"}})
    assert sum("32-bit moments for tensors below 4,096" in note for note in plan.notes) == 2


def test_double_quant_beside_another_dtype_changes_nothing():
    for dtype in ("fp32", "bf16"):
        plan_of(base={"family": "tiny", "dtype": dtype, "double_quant": False})
    plan_of(**{**low("int8"), "base": {"family": "tiny", "dtype": "int8", "double_quant": True}})


def test_kind_and_dtype_are_part_of_a_runs_identity():
    digests = set()
    for optim, base in (("adamw", "nf4"), ("adamw8bit", "nf4"), ("adamw", "int8")):
        digests.add(plan_of(**low(base, optim={"kind": optim})).digest)
    plain = {**low(), "base": {"family": "tiny", "dtype": "nf4", "double_quant": False}}
    assert len(digests | {plan_of(**plain).digest}) == 4


# ---- whole runs ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "dtype, carry, kind", [("nf4", "keep", "adamw8bit"), ("int8", "stack", "adamw"), ("nf4", "stack", "adamw")]
)
def test_a_stage_taken_up_from_a_checkpoint_is_bitwise_the_straight_run(tmp_path, dtype, carry, kind):
    settings = low(dtype, adapter={"carry": carry, "rank": 32}, optim={"kind": kind, "lr": 1e-3})
    settings["defaults"]["methods"] = [{"name": "l2"}, {"name": "replay"}]
    plan = plan_of(**settings)
    straight = tensors_of(run_plan(plan, tmp_path / "a"))
    resumed = tensors_of(run_plan(plan, tmp_path / "b", stop_at=(2, 2)))
    assert resumed == straight and all(any("adapter" in f for f in files) for files in straight.values())
    live = tmp_path / "b" / "draft-2" / "live"
    names = {n.split("|")[0] for n in tensor_names(live / "optimizer.safetensors")}
    eight = {"state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"}
    assert names == (eight if kind == "adamw8bit" else {"exp_avg", "exp_avg_sq"})


def tensor_names(path):
    from mcit.core.tensorfile import load_tensors

    return list(load_tensors(path))


def opened(plan, folder):
    return open_run(
        plan,
        runs_dir=folder,
        config_text="",
        resolved=resolved(plan.config),
        plan_json=plan_json(plan),
        environment={"versions": {}},
    )


class Lines(Silent):
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


def stop_after(steps):
    calls = []
    return lambda: calls.append(0) or len(calls) >= steps


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LOW)
def test_train_interrupt_resume_score_and_export(tmp_path, dtype):
    settings = low(dtype, optim={"kind": "adamw8bit"}, eval={"tasks": "seen", "rows": 4})
    settings["defaults"]["max_steps"] = 3
    settings["stages"] = [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno", "adapter": {**KEEP, "carry": "stack"}}]
    plan = plan_of(**settings)
    runs = []
    for name in ("a", "b"):
        run = opened(plan, tmp_path / name)
        reporter = Lines()
        with run.locked():
            if name == "b":
                with pytest.raises(Interrupted):
                    run_sequence(plan, run, reporter=reporter, stop=stop_after(2))
            run_sequence(plan, run, reporter=reporter)
        runs.append(run)
    audit = [line for line in reporter.lines if line.strip().startswith("language")]
    assert audit and all(f"frozen {dtype}" in line for line in audit)
    assert any("adamw8bit: 8-bit moments for" in line for line in reporter.lines)
    for stage in plan.stages:
        folders = [run.layout.stage(stage.folder) for run in runs]
        same = [(f / "adapter" / "adapter_model.safetensors").read_bytes() for f in folders]
        assert same[0] == same[1]
    answers = [sorted(run.layout.evals(2).rglob("predictions.jsonl")) for run in runs]
    assert len(answers[0]) == 2 and [p.read_bytes() for p in answers[0]] == [p.read_bytes() for p in answers[1]]
    assert all(len(read_predictions(p.parent)) == 4 for p in answers[0])
    adapter = export_stage(runs[0], stage=2, kind="adapter").record
    assert adapter["difference"] < 1e-5 * adapter["largest_logit"] and "trained_on" not in adapter
    merged = export_stage(runs[0], stage=2, kind="merged").record
    assert merged["trained_on"] == dtype and 0 < merged["quantised_difference_share"] < 1


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.parametrize("dtype", LOW)
def test_the_embedded_model_trains_resumes_and_exports_on_a_quantised_base(tmp_path, dtype):
    settings = low(dtype, optim={"batch": 2, "lr": 1e-3, "kind": "adamw8bit"}, engine={"micro_batch": 2, "workers": 0})
    settings["base"] = {"family": "embedded", "dtype": dtype}
    settings["defaults"]["max_steps"] = 3
    settings["stages"] = [{"recipe": "tiny/letter"}]
    settings["eval"] = {"tasks": "seen", "rows": 2, "max_new_tokens": 4}
    config, problems = parse_run({**TINY, **settings})
    assert not problems
    plan = make_plan(config)
    contents = []
    for name in ("a", "b"):
        run = opened(plan, tmp_path / name)
        with run.locked():
            if name == "b":
                with pytest.raises(Interrupted):
                    run_sequence(plan, run, reporter=Silent(), stop=stop_after(2))
            run_sequence(plan, run, reporter=Silent())
        folder = run.layout.stage(plan.stages[0].folder) / "adapter"
        contents.append((folder / "adapter_model.safetensors").read_bytes())
    assert contents[0] == contents[1]
    adapter = export_stage(run, stage=1, kind="adapter").record
    assert adapter["difference"] < 1e-5 * adapter["largest_logit"]
    merged = export_stage(run, stage=1, kind="merged").record
    assert 0 < merged["quantised_difference_share"] < 1
    assert torch.isfinite(torch.tensor(merged["quantised_difference"]))
