import pytest
import torch

from mcit.core.errors import StateError
from mcit.core.files import read_json, write_json
from mcit.models.adapters import lora_layers
from mcit.models.basefiles import base_digest
from mcit.models.frozen import checksum, frozen_checksums
from mcit.models.lineage import Lineage, apply_lineage, apply_start, read_lineage
from mcit.models.load import load_base
from tests.fakes.bench import plan_of, run_plan
from tests.fakes.models import tiny_model
from tests.fakes.toy import toy_batch
from tests.fakes.trained_run import drawn

CARRIES = [
    ("merge", "merge", "merge"),
    ("keep", "keep", "keep"),
    ("stack", "stack", "stack"),
    ("keep", "merge", "stack"),
    ("stack", "keep", "merge"),
]


def stages(*carries):
    recipes = ["tiny/letter", "tiny/yesno", "tiny/word"]
    adapter = {"rank": 4, "alpha": 8, "also_train": ["projector"]}
    return [{"recipe": r, "adapter": {**adapter, "carry": c}} for r, c in zip(recipes, carries, strict=True)]


@pytest.mark.parametrize("carries", CARRIES, ids="-".join)
def test_rebuilt_from_base_and_chain_equals_the_model_that_never_stopped(carries, tmp_path):
    plan = plan_of(stages=stages(*carries), defaults={"max_steps": 2})
    straight = run_plan(plan, tmp_path)["model"]
    model = load_base(plan.model_path)
    folders = [tmp_path / s.folder for s in plan.stages]
    lineage = read_lineage(folders, base=str(plan.model_path), base_sha256=base_digest(plan.model_path))
    apply_lineage(model, lineage)
    batch = toy_batch(model)
    with torch.no_grad():
        outs = [m(input_ids=batch.input_ids_BT, **batch.pixels).logits for m in (model, straight)]
    assert torch.equal(*outs)


def test_full_fine_tuning_chain(tmp_path):
    adapter = {"kind": "none", "also_train": ["projector", "head"]}
    plan = plan_of(defaults={"adapter": adapter, "max_steps": 2, "optim": {"batch": 8, "lr": 1e-3, "warmup": 0}})
    result = run_plan(plan, tmp_path)
    first = result[plan.stages[0].folder]
    assert "weights/model.safetensors" in first and not any(f.startswith("adapter/") for f in first)
    model = load_base(plan.model_path)
    before = checksum(model.lm_head.weight)
    folders = [tmp_path / s.folder for s in plan.stages]
    apply_lineage(model, read_lineage(folders, base="b", base_sha256=base_digest(plan.model_path)))
    state = result["model"].state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert checksum(model.lm_head.weight) != before


def test_frozen_tensors_and_every_buffer_keep_their_checksum(tmp_path):
    """After a stage that is kept as an adapter, everything that did not train is bit for bit what it was."""
    plan = plan_of(stages=stages("stack", "stack", "stack")[:1], base={"family": "tiny", "dtype": "bf16"})
    before = load_base(plan.model_path, dtype="bf16")
    expected = frozen_checksums(before)
    frozen = frozen_checksums(run_plan(plan, tmp_path)["model"])
    after = {name.replace(".base_layer.", "."): value for name, value in frozen.items()}
    changed = {n for n in expected if expected[n] != after.get(n)}
    assert changed == {n for n in expected if "multi_modal_projector" in n}
    assert any(n.startswith("buffer ") for n in expected)


def test_foreign_base_and_foreign_stages_are_refused(tmp_path):
    plan = plan_of(defaults={"max_steps": 1})
    run_plan(plan, tmp_path)
    folders = [tmp_path / s.folder for s in plan.stages]
    sha = base_digest(plan.model_path)
    with pytest.raises(StateError, match="another base"):
        read_lineage(folders, base="b", base_sha256="0")
    with pytest.raises(StateError, match="other stages"):
        read_lineage(folders[1:], base="b", base_sha256=sha)
    record = read_json(folders[0] / "lineage.json")
    write_json(folders[0] / "lineage.json", {**record, "digest": "f" * 64})
    with pytest.raises(StateError, match="other stages"):
        read_lineage(folders, base="b", base_sha256=sha)


def test_digest_names_base_order_and_carry(tmp_path):
    plan = plan_of(defaults={"max_steps": 1})
    run_plan(plan, tmp_path)
    sha = base_digest(plan.model_path)
    whole = read_lineage([tmp_path / s.folder for s in plan.stages], base="b", base_sha256=sha)
    part = Lineage("b", sha, whole.deltas[:1])
    assert len({whole.digest, part.digest, Lineage("b", sha).digest, Lineage("b", "x").digest}) == 4


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
@pytest.mark.parametrize("carries", [("keep", "keep", "keep"), ("stack", "stack", "stack"), ("stack", "keep", "stack")])
def test_a_chain_on_a_quantised_base_rebuilds_the_model_that_never_stopped(carries, dtype, tmp_path):
    base = {"family": "tiny", "dtype": dtype}
    plan = plan_of(stages=stages(*carries), base=base, defaults={"max_steps": 1})
    straight = run_plan(plan, tmp_path)["model"]
    model = load_base(plan.model_path, dtype=dtype)
    folders = [tmp_path / s.folder for s in plan.stages]
    apply_lineage(model, read_lineage(folders, base=str(plan.model_path), base_sha256=base_digest(plan.model_path)))
    batch = toy_batch(model)
    with torch.no_grad():
        outs = [m(input_ids=batch.input_ids_BT, **batch.pixels).logits for m in (model, straight)]
    assert torch.equal(*outs)
    assert frozen_checksums(model) == frozen_checksums(straight.requires_grad_(False))


def test_a_given_adapter_is_merged_or_stays_live_on_quantised_weights():
    file = drawn(tiny_model(), seed=4)
    for dtype in ("fp32", "nf4", "int8"):
        model = tiny_model(dtype=dtype)
        apply_start(model, file)
        live = {n for layer in lora_layers(model).values() for n in layer.lora_A}
        assert live == (set() if dtype == "fp32" else {"start00"})
        assert all(torch.equal(dict(model.named_parameters())[n], t) for n, t in file.full.items())
