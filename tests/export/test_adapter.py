import dataclasses

import pytest
import torch

from mcit.core.errors import StateError
from mcit.core.tensorfile import load_tensors
from mcit.export.export import export_stage
from mcit.export.source import open_source
from mcit.export.verify import logits, probe
from mcit.models.adapterfile import read_adapter, write_adapter
from mcit.models.load import load_processor
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.trained_run import PROJECTOR, by_hand, drawn, make_run

CPU = torch.device("cpu")


def peft_logits(folder, base=None):
    from peft import PeftModel

    model = PeftModel.from_pretrained(base or tiny_model(), str(folder))
    return logits(model, probe(load_processor(tiny_path())), device=CPU)


def expected(files, carries):
    return logits(by_hand(tiny_model(), files, carries), probe(load_processor(tiny_path())), device=CPU)


@pytest.mark.parametrize(
    "carries",
    [
        ("merge",),
        ("merge", "merge", "merge"),
        ("keep", "keep"),
        ("stack", "stack"),
        ("merge", "stack", "keep", "merge"),
    ],
)
def test_one_folder_has_the_effect_of_all_stages(tmp_path, carries):
    run, files = make_run(tmp_path, carries)
    done = export_stage(run, stage=len(carries), kind="adapter", out=tmp_path / "out")
    wanted = expected(files, carries)
    assert (wanted - peft_logits(done.folder)).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert done.record["difference"] < 1e-5 * done.record["largest_logit"]
    assert done.record["relative_to"] == "base" and done.record["not_in_peft"] == []


def test_an_earlier_stage_can_be_exported(tmp_path):
    run, files = make_run(tmp_path, ("merge", "merge"))
    done = export_stage(run, stage=1, kind="adapter", out=tmp_path / "out")
    assert torch.allclose(peft_logits(done.folder), expected(files[:1], ("merge",)), atol=1e-4)
    assert done.record["stages"] == ["01-r0"]


def test_a_shortened_adapter_states_its_error(tmp_path):
    run, _ = make_run(tmp_path, ("merge", "merge"))
    whole = export_stage(run, stage=2, kind="adapter", out=tmp_path / "whole").record
    done = export_stage(run, stage=2, kind="adapter", out=tmp_path / "out", max_rank=3)
    assert done.record["rank"] == 3 and whole["rank"] == 8
    assert 0.1 < done.record["truncation_error"] < 1.0
    assert done.record["difference"] > 1e-3
    assert max(pair.rank for pair in read_adapter(done.folder).lora.values()) == 3
    full = export_stage(run, stage=2, kind="adapter", out=tmp_path / "full", max_rank=8).record
    assert full["truncation_error"] < 1e-6 and full["difference"] < 1e-4


def test_a_half_trained_projector_module_is_completed_for_peft(tmp_path):
    """PEFT saves modules, not tensors: the frozen bias beside a trained weight comes along with its own value."""
    run, files = make_run(tmp_path, ("merge",), full=PROJECTOR[:1])
    done = export_stage(run, stage=1, kind="adapter", out=tmp_path / "out")
    assert set(read_adapter(done.folder).full) == set(PROJECTOR[:2])
    assert torch.allclose(peft_logits(done.folder), expected(files, ("merge",)), atol=1e-4)


def test_what_peft_cannot_name_is_in_a_file_of_its_own_and_said(tmp_path):
    name = "model.vision_tower.embeddings.class_embedding"
    if name not in dict(tiny_model().named_parameters()):
        name = "model.vision_tower.vision_model.embeddings.class_embedding"
    run, files = make_run(tmp_path, ("merge",), full=(*PROJECTOR, name))
    done = export_stage(run, stage=1, kind="adapter", out=tmp_path / "out")
    assert done.record["not_in_peft"] == [name]
    assert torch.equal(load_tensors(done.folder / "extra.safetensors")[name], files[0].full[name])
    assert torch.equal(read_adapter(done.folder).full[name], files[0].full[name])  # as base.adapter of another run


def test_the_starting_adapter_of_the_run_is_part_of_it(tmp_path):
    start = drawn(tiny_model(), seed=77, full=())
    write_adapter(tmp_path / "start", start, base="b", base_sha256="0" * 64)
    run, files = make_run(tmp_path, ("merge",), base={"adapter": str(tmp_path / "start")})
    done = export_stage(run, stage=1, kind="adapter", out=tmp_path / "out")
    assert torch.allclose(peft_logits(done.folder), expected([start, *files], ("merge", "merge")), atol=1e-4)


@pytest.mark.parametrize("kind", ["adapter", "delta"])
def test_where_fp32_rounds_too_much_float64_decides(tmp_path, monkeypatch, kind):
    """A tolerance below fp32's rounding: the files are right, so float64 agrees. A wrong file differs in both."""
    import mcit.export.adapter
    import mcit.export.delta
    from mcit.export import verify

    run, files = make_run(tmp_path, ("merge", "merge"))
    whole = export_stage(run, stage=2, kind=kind, out=tmp_path / "whole").record
    assert "difference_in_float64" not in whole
    share = whole["difference"] / whole["largest_logit"]
    monkeypatch.setattr(verify, "TOLERANCE", 0.9 * share)
    done = export_stage(run, stage=2, kind=kind, out=tmp_path / "out")
    assert 0 < done.record["difference_in_float64"] < 0.9 * share * done.record["largest_logit"]
    module = getattr(mcit.export, kind)
    inner = module.write_folder

    def wrong(source, folder, file, **rest):
        name, pair = next(iter(file.lora.items()))
        worse = {**file.lora, name: dataclasses.replace(pair, scale=1.01 * pair.scale)}
        return inner(source, folder, dataclasses.replace(file, lora=worse), **rest)

    monkeypatch.setattr(module, "write_folder", wrong)
    with pytest.raises(StateError, match="differs from the trained model"):
        export_stage(run, stage=2, kind=kind, out=tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_full_fine_tuning_is_no_adapter(tmp_path):
    run, _ = make_run(tmp_path, ("merge", "none"))
    with pytest.raises(StateError, match="whole weights") as error:
        export_stage(run, stage=2, kind="adapter", out=tmp_path / "out")
    assert "--as merged" in str(error.value) and "02-r1" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]


def test_a_bf16_base_states_its_difference(tmp_path):
    run, _ = make_run(tmp_path, ("merge", "merge"), dtype="bf16")
    record = export_stage(run, stage=2, kind="adapter", out=tmp_path / "out").record
    assert record["base_dtype"] == "bf16" and 0 < record["difference_share"] < 0.05


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
@pytest.mark.parametrize("carries", [("keep",), ("stack", "stack"), ("stack", "keep")])
def test_on_a_quantised_base_the_adapter_is_the_trained_model(tmp_path, dtype, carries):
    """Plain peft on the quantised base gives the trained logits to fp32 rounding; no full-precision copy is involved."""
    run, files = make_run(tmp_path, carries, dtype=dtype)
    done = export_stage(run, stage=len(carries), kind="adapter", out=tmp_path / "out")
    trained = open_source(run, len(carries)).model(len(carries))
    wanted = logits(trained, probe(load_processor(tiny_path())), device=CPU)
    found = peft_logits(done.folder, base=tiny_model(dtype=dtype))
    assert (wanted - found).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert done.record["difference"] < 1e-5 * done.record["largest_logit"] and done.record["base_dtype"] == dtype
    assert ("base_double_quant" in done.record) == (dtype == "nf4")
    full = expected(files, tuple("merge" if c == "stack" else c for c in carries))
    assert 1e-3 < float((wanted - full).norm() / full.norm()) < 0.5  # the base is another one than in fp32


def test_a_shortened_adapter_and_a_given_one_on_a_quantised_base(tmp_path):
    start = drawn(tiny_model(), seed=77, full=())
    write_adapter(tmp_path / "start", start, base="b", base_sha256="0" * 64)
    run, _ = make_run(tmp_path, ("stack",), dtype="nf4", base={"adapter": str(tmp_path / "start")})
    whole = export_stage(run, stage=1, kind="adapter", out=tmp_path / "whole").record
    assert whole["rank"] == 8 and whole["difference"] < 1e-5 * whole["largest_logit"]
    short = export_stage(run, stage=1, kind="adapter", out=tmp_path / "short", max_rank=3).record
    assert short["rank"] == 3 and short["truncation_error"] > 0.1 and short["difference"] > 1e-3
