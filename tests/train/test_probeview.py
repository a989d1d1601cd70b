"""What probes are handed, against the model itself."""

import math
import random
from dataclasses import replace

import torch

from mcit.core.interfaces import Silent
from mcit.core.types import Encoding, Turn
from mcit.data.collate import collate
from mcit.engine.forward import run_model
from mcit.probes.base import Probe
from mcit.probes.formulas.recollection import recognised
from mcit.train.loop import train_stage
from mcit.train.stage import build_stage
from tests.fakes.bench import Draft, plan_of, run_plan, tensors_of
from tests.fakes.sharded import ShardedEngine
from tests.train.test_stage import material

STAGES = [{"recipe": "tiny/letter"}]


class Looks(Probe):
    """Keeps what it saw, for the test."""

    seen: dict = {}

    def rows(self, data):
        return {"some": [*data.stage_rows()[:19]], "test": list(data.rows("letter", "test"))[:5]}

    def measure(self, rows, ctx):
        if ctx.step == 0:
            Looks.seen = {
                "fits": ctx.fits(rows["some"]),
                "answers": ctx.answers(rows["test"], max_new_tokens=3),
                "score": ctx.score("letter", rows["test"]),
                "norms": ctx.gradient_norms(rows["some"][:3]),
                "rows": rows,
            }
        return {}


def looked(tmp_path, **config):
    plan = plan_of(stages=STAGES, probes=[{"use": f"{__name__}:Looks", "every": 100}], **config)
    made = material(plan)
    work = build_stage(plan.stages[0], made, inherited={})
    work.probes.at(0, 4, Draft(tmp_path), trained=0.0)
    return Looks.seen, made, work


def test_fits_answers_and_scores(tmp_path):
    """19 rows are two batches; each row's mean is that of a pass over it alone, up to padding."""
    seen, made, _ = looked(tmp_path)
    for row, fit in zip(seen["rows"]["some"], seen["fits"], strict=True):
        batch = collate([made.encoder.encode(row)], stream="x", pad_id=made.encoder.pad_id)
        with torch.no_grad():
            out = run_model(made.model, batch, device=torch.device("cpu"))
        assert fit.tokens == len(out.nll_N) and math.isclose(fit.nll, float(out.nll_N.mean()), rel_tol=1e-4)
        assert fit.right == int((out.logits_NV.argmax(-1) == out.targets_N).sum())
    assert len(seen["answers"]) == 5 and all(answer["tokens"] <= 3 for answer in seen["answers"])
    assert seen["score"]["rows"] == 5 and 0 <= seen["score"]["accuracy"] <= 1


class Strings(Probe):
    """600 pairs of plain texts, alike in form: eight random words each."""

    seen: list = []

    def rows(self, data):
        draw = random.Random(1)
        row, some = data.stage_rows()[0], []
        for k in range(1200):
            text = " ".join(draw.choice("red blue cat dog sun moon up down one two".split()) for _ in range(8))
            some.append(
                replace(row, id=str(k), images=(), turns=(Turn("assistant", text),), encoding=Encoding(raw=True))
            )
        return {"some": some}

    def measure(self, rows, ctx):
        if ctx.step == 0:
            losses = [fit.nll for fit in ctx.fits(rows["some"])]
            Strings.seen = recognised(losses[:600], losses[600:])
        return {}


def test_an_untrained_model_recognises_by_chance(tmp_path):
    """0.5 +- 1.96 sqrt(0.25 / 600): between 0.46 and 0.54."""
    plan = plan_of(stages=STAGES, probes=[{"use": f"{__name__}:Strings", "every": 100}])
    work = build_stage(plan.stages[0], material(plan), inherited={})
    work.probes.at(0, 4, Draft(tmp_path), trained=0.0)
    assert len(Strings.seen) == 600 and 0.46 <= sum(Strings.seen) / 600 <= 0.54


def test_probes_and_methods_ask_without_packs_where_they_are_off(tmp_path, monkeypatch):
    def packed(*args, **kwargs):
        raise AssertionError("packed")

    monkeypatch.setattr("mcit.evals.generator.decode", packed)
    seen, _, work = looked(tmp_path, eval={"tasks": "none", "share_prefix": "off"})
    assert len(seen["answers"]) == 5
    assert len(work.ctx.data.answer(seen["rows"]["test"], 3)) == 5


def test_norms_of_gradients_by_autograd(tmp_path):
    """The projector is moved by 0.1 from the anchor of l2 with weight 0.5: its penalty's gradient is 0.05 everywhere there."""
    seen, made, work = looked(tmp_path, defaults={"methods": [{"name": "l2", "weight": 0.5}]})
    assert seen["norms"]["l2"] == 0  # no anchor yet
    batch = [made.encoder.encode(row) for row in seen["rows"]["some"][:3]]
    batch = collate(batch, stream="task", pad_id=made.encoder.pad_id)
    run_model(made.model, batch, device=torch.device("cpu")).nll_N.mean().backward()
    trained = {n: p for n, p in made.model.named_parameters() if p.requires_grad}
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trained.values()))
    assert math.isclose(seen["norms"]["plasticity"], norm, rel_tol=1e-4)
    work.methods.on_stage_start(work.ctx)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.grad = None
        projector = [p.add_(0.1) for n, p in trained.items() if ".lora_" not in n]
    work.probes._running[0].lines.clear()
    work.probes.at(0, 4, Draft(tmp_path), trained=0.0)
    moved = sum(p.numel() for p in projector)
    assert moved and math.isclose(Looks.seen["norms"]["l2"], 0.05 * math.sqrt(moved), rel_tol=1e-4)


def test_probes_leave_no_trace(tmp_path):
    """Replay and distillation, of which the probe asks terms outside of steps, answers in between, canaries of both stages,
    a stop between two measurements, parameters that are only there in the engine's windows: the bytes of the plain run.
    """
    methods = [{"name": "replay", "keep": 8, "per_step": 2}, {"name": "lwf"}, {"name": "canary", "rows": 3}]
    given = {"defaults": {"methods": methods}}
    plain = tensors_of(run_plan(plan_of(**given), tmp_path / "plain"))
    probe = {"use": "stability", "every": 2, "rows": 4, "answers": 2, "share": None}
    others = [{"use": "generation", "every": 3, "rows": 2, "share": None}, {"use": "canary", "max_new_tokens": 4}]
    probed = plan_of(**given, probes=[probe, *others])
    assert tensors_of(run_plan(probed, tmp_path / "probed", engine=ShardedEngine, stop_at=(2, 3))) == plain


def test_norms_by_method_are_on_record(tmp_path):
    methods = [{"name": "replay", "keep": 8, "per_step": 2}, {"name": "lwf"}, {"name": "canary", "rows": 3}]
    probe = {"use": "stability", "every": 2, "rows": 4, "answers": 0, "share": None, "norms": 2}
    plan = plan_of(defaults={"methods": methods}, probes=[probe])
    folder = tmp_path / "d"
    folder.mkdir()
    one = build_stage(plan.stages[0], material(plan), inherited={})
    train_stage(one, Draft(folder), reporter=Silent())
    one.methods.save(tmp_path / "state")
    state = {p.name: p for p in (tmp_path / "state").iterdir()}
    draft = Draft(folder)
    train_stage(build_stage(plan.stages[1], material(plan), inherited=state), draft, reporter=Silent())
    norms = {line["step"]: line["values"].get("norms", {}) for line in draft.probes}
    assert sorted(norms) == [0, 2, 4] and norms[4] == {}
    assert norms[0]["canary"] < 4 * norms[0]["plasticity"]  # its token weighs as one of the task
    assert norms[0]["lwf"] < 1e-3 < norms[2]["lwf"] and norms[0]["replay"] > 0 and norms[0]["plasticity"] > 0
