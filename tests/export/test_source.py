import pytest
import torch

from mcit.core.errors import StateError
from mcit.export.source import fold_live, open_source, with_siblings
from mcit.models import adapters
from mcit.models.adapterfile import AdapterFile, product
from tests.fakes.models import tiny_model
from tests.fakes.trained_run import PROJECTOR, effective, make_run


@pytest.mark.parametrize(
    "carries", [("merge", "merge", "merge"), ("keep", "keep", "merge"), ("stack", "keep", "stack")]
)
def test_joined_is_the_sum_of_what_is_not_superseded(tmp_path, carries):
    run, files = make_run(tmp_path, carries)
    joined = open_source(run, 3).joined(tiny_model())
    deltas, full = effective(files, carries)
    assert set(joined.lora) == set(deltas)
    for name, pair in joined.lora.items():
        assert torch.allclose(product(pair), deltas[name], atol=1e-5)
        assert pair.rank == 4 * sum(1 for i, c in enumerate(carries) if c != "keep" or i == 2)
    assert all(torch.equal(joined.full[name], full[name]) for name in PROJECTOR)


def test_folding_live_adapters_leaves_a_plain_model_with_the_same_weights(tmp_path):
    run, files = make_run(tmp_path, ("stack", "keep"))
    model = open_source(run, 2).model(2)
    assert adapters.lora_layers(model)
    fold_live(model)
    assert not adapters.lora_layers(model) and not any("lora" in name for name in model.state_dict())
    deltas, _ = effective(files, ("stack", "keep"))
    base = adapters.base_parameters(tiny_model())
    for name, delta in deltas.items():
        assert torch.allclose(model.get_submodule(name).weight, base[name + ".weight"] + delta, atol=1e-5)


def test_siblings_are_only_those_of_the_same_module():
    model = tiny_model()
    file = with_siblings(AdapterFile({}, {PROJECTOR[0]: torch.zeros(1)}), model)
    assert set(file.full) == set(PROJECTOR[:2])
    assert torch.equal(file.full[PROJECTOR[0]], torch.zeros(1))
    assert torch.equal(file.full[PROJECTOR[1]], model.get_parameter(PROJECTOR[1]))


def test_what_cannot_be_exported_is_refused(tmp_path):
    run, _ = make_run(tmp_path, ("merge", "merge"))
    for stage in (0, 3):
        with pytest.raises(StateError, match=f"no stage {stage}"):
            open_source(run, stage)
    victim = run.layout.stage("01-r0") / "adapter" / "adapter_model.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(bytes(data))
    with pytest.raises(StateError, match="checksum differs") as error:
        open_source(run, 2)
    assert str(victim) in str(error.value)


def test_a_stage_that_is_not_committed_is_refused(tmp_path):
    run, _ = make_run(tmp_path, ("merge", "merge"))
    run.layout.stage("02-r1").rename(run.layout.draft("02-r1"))
    assert open_source(run, 1).stage == 1
    with pytest.raises(StateError, match="not finished"):
        open_source(run, 2)


def test_a_changed_base_is_refused(tmp_path, monkeypatch):
    run, _ = make_run(tmp_path, ("merge",))
    monkeypatch.setattr("mcit.export.source.base_digest", lambda path: "f" * 64)
    with pytest.raises(StateError, match="another base"):
        open_source(run, 1)
