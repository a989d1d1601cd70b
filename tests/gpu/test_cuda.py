"""What holds on a GPU: run with ``pytest -m gpu`` on a machine that has one; every other run leaves these out."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from mcit.core.errors import TrainingError
from mcit.core.interfaces import Silent
from mcit.core.schema import OptimConfig
from mcit.data.collate import collate
from mcit.data.encode import Encoder
from mcit.engine import segments
from mcit.engine.base import EngineSpec
from mcit.engine.pack import Run, pack_rows
from mcit.engine.plain import PlainEngine
from mcit.engine.segments import Segments
from mcit.evals.decode import decode
from mcit.models.basefiles import base_digest
from mcit.models.lineage import Lineage
from mcit.models.load import load_base, load_processor
from mcit.plan.preflight import make_encoder
from mcit.train.loop import train_stage
from mcit.train.stage import Material, build_stage
from tests.fakes.bench import Draft, plan_of
from tests.fakes.models import adapted, tiny_model, tiny_path
from tests.fakes.packs import questions
from tests.fakes.rows import picture, row

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
CUDA = torch.device("cuda")
OPTIM = OptimConfig(batch=6, lr=1e-2, lr_projector=1e-3, schedule="constant", warmup=0, clip=0.5)
RUNS = [Run(0, 20), Run(20, 6, 0, 20), Run(26, 9, 0, 20), Run(35, 33), Run(68, 5), Run(73, 30), Run(103, 7, 73, 30)]


@pytest.fixture(autouse=True)
def _exact():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def engine_of(device, *, packs, read_every=1):
    model = tiny_model()
    units = adapted(model)
    model.to(device)
    spec = EngineSpec(units, OPTIM, 99, is_projector=lambda n: "projector" in n, read_every=read_every)
    engine = PlainEngine(model, spec)
    if packs:
        engine.use_packs(questions(model, [3, 1]))
        assert not engine.notes
    return engine


def backward(engine, batch):
    counts = engine.target_counts([batch])
    with engine.micro_batch(last=True):
        out = engine.forward(batch)
        engine.backward(out.nll_N.sum() / counts.of("task", "tokens"), batch)
    return out.nll_N.detach()


def gradients(engine, batch):
    losses = backward(engine, batch)
    return losses.cpu(), {n: p.grad.cpu() for n, p in engine._named.items() if p.grad is not None}


def step(engine, batch):
    backward(engine, batch)
    engine.step()


def test_packs_padding_and_the_cpu_agree():
    """Token losses and gradients in fp32."""
    batch = questions(tiny_model(), [3, 1])
    reference, expected = gradients(engine_of("cpu", packs=False), batch)
    for packs in (False, True):
        losses, found = gradients(engine_of(CUDA, packs=packs), batch)
        torch.testing.assert_close(losses, reference, rtol=1e-4, atol=1e-5)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize(("heads", "groups"), [(8, 8), (8, 2)])
def test_flash_attention_is_the_buckets(heads, groups):
    """bf16 outputs and gradients of runs with and without prefixes against buckets in fp32, by the norm of the difference."""
    assert segments.varlen_attn is not None, "this torch has no kernel for sequences of unlike length"
    draw = torch.Generator(CUDA).manual_seed(0)
    size = sum(run.length for run in RUNS)
    q, k, v, up = (torch.randn(size, n, 64, device=CUDA, generator=draw) for n in (heads, groups, groups, heads))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    found = []
    for half in (True, False):
        made = Segments(RUNS, CUDA, half=half)
        assert (made.flat is not None) == half
        inputs = [x.bfloat16() if half else x for x in (q, k, v)]
        out = made.attend(*inputs, 0.125).float()
        found.append([out.detach(), *torch.autograd.grad((out * up).sum(), (q, k, v))])
    for one, exact in zip(*found, strict=True):
        assert (one - exact).norm() < 0.01 * exact.norm()


def test_the_kernel_trains_a_bf16_model_as_buckets_do(monkeypatch):
    """Losses of five steps of the same engine."""
    seen = []
    for kernel in (True, False):
        model = tiny_model(dtype="bf16")
        units = adapted(model)
        model.to(CUDA)
        spec = EngineSpec(units, OPTIM, 99, is_projector=lambda n: "projector" in n, bf16=True)
        engine = PlainEngine(model, spec)
        batch = questions(model, [3, 1])
        if not kernel:
            monkeypatch.setattr(segments, "varlen_attn", None)
        engine.use_packs(batch)
        assert not engine.notes
        losses = [step(engine, batch) or engine.metrics()["loss"] for _ in range(5)]
        seen.append(losses)
    print("losses by the kernel and by buckets:", seen)
    assert seen[0] == pytest.approx(seen[1], rel=0.02)


def work_of(plan, device):
    model = load_base(plan.model_path, device=device)
    lineage = Lineage(str(plan.model_path), base_digest(plan.model_path))
    return build_stage(plan.stages[0], Material(plan, model, make_encoder(plan), lineage), inherited={}), model


def test_a_run_has_the_losses_of_the_cpu(tmp_path):
    losses = {}
    for device in ("cpu", "cuda"):
        plan = plan_of(defaults={"max_steps": 12, "optim": {"batch": 8, "lr": 2e-3, "lr_projector": 2e-4, "warmup": 0}})
        draft = Draft(tmp_path / device)
        train_stage(work_of(plan, device)[0], draft, reporter=Silent())
        losses[device] = [line["loss"] for line in draft.lines]
    print("losses:", losses)
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def test_a_run_resumed_after_a_kill_is_bitwise(tmp_path):
    """With deterministic kernels, as every command sets them."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found = []
        for stop in (None, None, 3):
            folder = tmp_path / str(len(found))
            plan = plan_of(
                defaults={"max_steps": 6}, checkpoint={"every": 3}, engine={"micro_batch": 4, "log_every": 3}
            )
            work, model = work_of(plan, "cuda")
            draft = Draft(folder)
            if stop:
                with pytest.raises(RuntimeError, match="killed"):
                    train_stage(work, Killed(draft, stop), reporter=Silent())
                work, model = work_of(plan, "cuda")
                again = Draft(folder, resume_from=stop)
                again.cursors, again.extra = draft.cursors, draft.kept
                draft = again
            train_stage(work, draft, reporter=Silent())
            found.append({n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad})
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    first, twice, resumed = found
    far = {name: max(float((value - other[n]).abs().max()) for n, value in first.items())
           for name, other in (("the same run twice", twice), ("resumed", resumed))}  # fmt: skip
    print("largest differences of a weight:", far)
    assert far == {"the same run twice": 0.0, "resumed": 0.0}


class Killed:
    """A draft whose process dies after its checkpoint at a step."""

    def __init__(self, draft, step):
        self._draft, self._step = draft, step

    def __getattr__(self, name):
        return getattr(self._draft, name)

    def checkpoint(self, step, *args, **kwargs):
        self._draft.checkpoint(step, *args, **kwargs)
        if step == self._step:
            raise RuntimeError("killed")


def waits(engine, batches):
    """Operations of these steps that made the host wait for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for batch in batches:
                step(engine, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def test_twenty_steps_make_the_host_wait_once_each_at_most():
    """With figures read together: in the backward pass, where the projector trains. A step read at once waits in step() too."""
    model = tiny_model()
    batches = [questions(model, [3, 1], seed=seed) for seed in range(20)]
    engine = engine_of(CUDA, packs=True, read_every=40)
    for batch in batches[:2]:
        step(engine, batch)
    engine.read()
    found = waits(engine, batches)
    print("waits:", found)
    assert len(found) <= 20 and all("torch/autograd" in place for place in found)
    assert len(engine.read()) == 20
    told = engine_of(CUDA, packs=True)
    step(told, batches[0])
    assert sum("torch/autograd" not in place for place in waits(told, batches[:5])) >= 5


def test_a_bad_step_that_waits_changes_nothing():
    engine = engine_of(CUDA, packs=True, read_every=9)
    batches = [questions(engine.model, [3, 1], seed=seed) for seed in range(3)]
    step(engine, batches[0])
    before = {n: p.detach().clone() for n, p in engine._named.items()}
    batches[1].pixels["pixel_values"][:] = torch.nan
    for batch in batches[1:]:
        step(engine, batch)
    assert all(torch.equal(before[n], p) for n, p in engine._named.items())
    with pytest.raises(TrainingError, match="step 2|non-finite"):
        engine.read()


def test_packed_answers_are_those_of_generate(tmp_path):
    a, b = (picture(tmp_path, f"{k}.png", colour=(90 * k, 200, 30)) for k in range(2))
    asked = [("<image>\nWhat is it?", (a,)), ("<image>\nWhich colour is it, and where?", (a,)), ("<image>\nYes?", (b,)),
             ("Say something", ()), ("<image>\nYes?", (a,))]  # fmt: skip
    rows = [row(text, "gold", id=f"r{k}", images=shown, root=str(tmp_path)) for k, (text, shown) in enumerate(asked)]
    encoder, model = Encoder(load_processor(tiny_path())), tiny_model().to(CUDA)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=encoder.pad_id)
    pack = pack_rows(collate([encoder.prompt(one) for one in rows], stream="t", pad_id=encoder.pad_id), always=True)
    with torch.no_grad():
        found, near = decode(model, pack, ends=(), limit=20, device=CUDA)
        for k, one in enumerate(rows):
            batch = collate([encoder.prompt(one)], stream="t", pad_id=encoder.pad_id)
            inputs = SimpleNamespace(input_ids=batch.input_ids_BT, attention_mask=batch.attention_BT, **batch.pixels)
            made = model.generate(**{n: v.to(CUDA) for n, v in vars(inputs).items()}, max_new_tokens=20)
            own = made[0, batch.input_ids_BT.shape[1] :].tolist()
            upto = 20 if near[k] is None else near[k]
            assert found[k][:upto] == own[:upto], one.id
    assert sum(n is None for n in near) >= 3
