import pytest
import torch

from mcit.core.errors import StateError
from mcit.export.export import export_stage
from mcit.export.verify import logits, probe
from mcit.models.load import load_processor
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.trained_run import by_hand, make_run


@pytest.mark.parametrize(
    "carries", [("merge", "merge"), ("keep", "keep"), ("stack", "merge"), ("merge", "keep", "keep")]
)
def test_the_delta_on_merged_weights_below_is_the_trained_model(tmp_path, carries):
    from peft import PeftModel

    run, files = make_run(tmp_path, carries)
    k = len(carries)
    done = export_stage(run, stage=k, kind="delta", out=tmp_path / "out")
    batch, cpu = probe(load_processor(tiny_path())), torch.device("cpu")
    below = by_hand(tiny_model(), files[:-1], carries[:-1])
    found = logits(PeftModel.from_pretrained(below, str(done.folder)), batch, device=cpu)
    wanted = logits(by_hand(tiny_model(), files, carries), batch, device=cpu)
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert done.record["relative_to_stages"] == [f"{i + 1:02d}-r{i}" for i in range(k - 1)]
    assert done.record["relative_to"] not in ("base", done.record["lineage"])


def test_the_first_stage_is_relative_to_the_base(tmp_path):
    run, _ = make_run(tmp_path, ("merge",))
    record = export_stage(run, stage=1, kind="delta", out=tmp_path / "out").record
    assert record["relative_to"] == "base" and record["relative_to_stages"] == []


def test_an_adapter_stage_above_full_fine_tuning_has_a_delta(tmp_path):
    run, _ = make_run(tmp_path, ("none", "merge"))
    export_stage(run, stage=2, kind="delta", out=tmp_path / "out")
    with pytest.raises(StateError, match="whole weights"):
        export_stage(run, stage=1, kind="delta", out=tmp_path / "no")


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_of_a_quantised_run_it_fits_the_merged_weights_in_bf16_and_states_the_difference(tmp_path, dtype):
    run, _ = make_run(tmp_path, ("stack", "stack"), dtype=dtype)
    record = export_stage(run, stage=2, kind="delta", out=tmp_path / "out").record
    assert record["difference_share"] < 0.05 and record["trained_on"] == dtype and record["written_as"] == "bf16"
    assert 1e-3 < record["quantised_difference_share"] < 0.5
