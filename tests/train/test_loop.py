import contextlib
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from mcit.core.errors import Interrupted, TrainingError
from mcit.core.interfaces import Silent
from mcit.core.profile import profiled
from mcit.core.records import PlanRecord, ProgressRecord
from mcit.core.seeds import seed_for
from mcit.core.types import Progress
from mcit.data.encode import Encoder
from mcit.engine.plain import PlainEngine
from mcit.methods.base import Method
from mcit.models.basefiles import base_digest
from mcit.models.lineage import Lineage
from mcit.models.load import load_base
from mcit.plan.preflight import make_encoder
from mcit.plan.record import plan_json
from mcit.train.loop import Meter, StageWork, _due, train_stage, validation
from mcit.train.stage import Material, audit_lines, build_stage
from tests.fakes.bench import Draft, plan_of, run_plan, tensors_of


def work_of(plan, stage=0, **kwargs):
    model = load_base(plan.model_path)
    lineage = Lineage(str(plan.model_path), base_digest(plan.model_path))
    return build_stage(
        plan.stages[stage], Material(plan, model, make_encoder(plan), lineage), inherited={}, **kwargs
    ), model


def draft(tmp_path):
    return Draft(tmp_path)


def test_the_tiny_model_learns_and_every_step_is_recorded(tmp_path):
    plan = plan_of(
        defaults={"epochs": 2, "max_steps": 30, "optim": {"batch": 8, "lr": 2e-2, "lr_projector": 2e-3, "warmup": 0}}
    )
    work, _ = work_of(plan)
    d = draft(tmp_path)
    progress = train_stage(work, d, reporter=Silent())
    losses = [line["loss"] for line in d.lines]
    assert [line["step"] for line in d.lines] == list(range(1, 31))
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]
    assert progress["steps"] == 30 and progress["tokens"] == sum(line["tokens"] for line in d.lines)
    assert {"loss", "lr", "grad_norm", "tokens", "seconds"} <= set(d.lines[0])


def test_the_largest_batch_is_tried_first_unless_memory_surely_suffices(tmp_path, monkeypatch):
    """Trained bytes are the same: a rehearsal leaves nothing behind."""
    plan, tried = plan_of(defaults={"max_steps": 1}), []
    rehearse = PlainEngine.rehearse
    monkeypatch.setattr(PlainEngine, "rehearse", lambda self, batch: tried.append(batch) or rehearse(self, batch))
    trained = []
    for roomy in (False, True):
        work, model = work_of(plan)
        work.roomy = roomy
        train_stage(work, Draft(tmp_path / str(roomy)), reporter=Silent())
        trained.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        assert len(tried) == 1
    assert all(torch.equal(trained[0][name], value) for name, value in trained[1].items())


def test_micro_batch_size_does_not_change_the_first_losses(tmp_path):
    first = {}
    for size in (1, 3, 8):
        plan = plan_of(engine={"micro_batch": size, "workers": 0}, defaults={"max_steps": 2})
        work, _ = work_of(plan)
        d = Draft(tmp_path / str(size))
        train_stage(work, d, reporter=Silent())
        first[size] = [line["loss"] for line in d.lines]
    for size in (1, 3):
        assert first[size] == pytest.approx(first[8], rel=1e-4)


def test_stop_checkpoints_and_says_how_to_go_on(tmp_path):
    work, _ = work_of(plan_of())
    d = draft(tmp_path)
    with pytest.raises(Interrupted, match="stopped after step 1 of 4") as error:
        train_stage(work, d, reporter=Silent(), stop=lambda: True)
    assert (tmp_path / "live" / "model.safetensors").is_file() and error.value.exit_code == 75


@pytest.mark.parametrize(
    ("every", "profile", "read"), [(1, False, [1, 2, 3]), (2, False, [0, 2, 3]), (2, True, [1, 2, 3])]
)
def test_steps_whose_figures_wait_for_others(tmp_path, every, profile, read):
    """Lines that are written when a step is through; a profile is told each step's tokens at once."""
    work, _ = work_of(plan_of(defaults={"max_steps": 3}, checkpoint={"every": 0}))
    work.log_every, d, found = every, draft(tmp_path), []
    with profiled(profile):
        train_stage(work, d, reporter=Silent(), stop=lambda: found.append(len(d.lines)))
    assert found == read


def test_a_checkpoint_does_not_wait_for_the_figures_of_later_steps(tmp_path):
    """What is written when a step is through, but for its own checkpoint: one every two steps, figures every ten."""
    work, _ = work_of(plan_of(checkpoint={"every": 2}))
    work.log_every, d, found = 10, draft(tmp_path), []
    train_stage(work, d, reporter=Silent(), stop=lambda: found.append(len(d.lines)))
    assert found == [0, 0, 2, 4] and d.kept["loss"] == d.lines[-1]["loss"]


def test_killed_between_the_last_checkpoint_and_the_commit_nothing_of_the_progress_is_lost(tmp_path):
    """No step is left to do, and the loss and the tokens are those of the process that did them."""
    plan = plan_of(checkpoint={"every": 4})
    first = draft(tmp_path)
    done = train_stage(work_of(plan)[0], first, reporter=Silent())
    assert first.last == done["steps"] == 4 and done["loss"] == first.lines[-1]["loss"]
    again = Draft(tmp_path, resume_from=4)
    again.extra, again.cursors = first.kept, first.cursors
    restarted = train_stage(work_of(plan)[0], again, reporter=Silent())
    free = {"seconds": 0, "peak_bytes": 0}
    assert again.lines == [] and {**restarted, **free} == {**done, **free}
    assert restarted["peak_bytes"] >= first.kept["peak_bytes"] > 1 << 20  # that of the process that was killed counts
    assert done["trained"] == sum(p.numel() for p in work_of(plan)[1].parameters() if p.requires_grad)
    assert restarted["seconds"] >= first.kept["seconds"] > 0


def test_checkpoint_holds_trained_tensors_moments_and_state_only(tmp_path):
    """Within 10 % of the bytes of weights and two moments (larger rank, so that headers do not matter)."""
    plan = plan_of(
        defaults={"adapter": {"rank": 64, "alpha": 64, "also_train": ["projector"]}, "max_steps": 2},
        checkpoint={"every": 2},
    )
    work, model = work_of(plan)
    train_stage(work, draft(tmp_path), reporter=Silent())
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    size = sum(p.stat().st_size for p in (tmp_path / "live").rglob("*") if p.is_file())
    assert 3 * trained <= size <= 1.1 * 3 * trained


def test_non_finite_loss_stops_before_the_step_and_names_rows(tmp_path):
    work, model = work_of(plan_of())
    inner, seen = work.streams.next_step, []

    def poisoned():
        batches = inner()
        seen.append(batches)
        if len(seen) == 2:
            pixels = {k: torch.full_like(v, math.nan) for k, v in batches[1].pixels.items()}
            batches[1] = dataclasses.replace(batches[1], pixels=pixels)
        return batches

    work.streams.next_step = poisoned
    with pytest.raises(TrainingError) as error:
        train_stage(work, draft(tmp_path), reporter=Silent())
    text = str(error.value)
    assert "stage 01-letter, step 2" in text
    assert all(row.where in text for row in seen[1][1].rows) and not any(row.where in text for row in seen[1][0].rows)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_validation_is_scored_every_n_steps(tmp_path):
    plan = plan_of(eval={"tasks": "none", "validate_every": 2})
    work, _ = work_of(plan)
    d = draft(tmp_path)
    train_stage(work, d, reporter=Silent())
    assert [("validation/loss" in line) for line in d.lines] == [False, True, False, True]
    assert 0 <= d.lines[1]["validation/token_accuracy"] <= 1 and d.lines[1]["validation/loss"] > 0


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_validation_split(size, monkeypatch):
    """Sums of nll, right tokens and tokens over ranks are those of one; every rank runs equally many passes."""
    import mcit.train.loop as module

    work, _ = work_of(plan_of(eval={"tasks": "none", "validate_every": 2}))
    sums, passes = [], []
    forward = work.engine.forward
    monkeypatch.setattr(work.engine, "forward", lambda batch: passes.append(1) or forward(batch))
    monkeypatch.setattr(module.world, "all_sum", lambda tensor: sums.append(tensor) or tensor)
    work.validate()
    (whole,), once = sums, len(passes)
    sums.clear()
    monkeypatch.setattr(module.world, "size", lambda: size)
    for rank in range(size):
        monkeypatch.setattr(module.world, "rank", lambda rank=rank: rank)
        passes.clear()
        work.validate()
        assert len(passes) == -(-once // size)
    assert whole[2] > 0 and torch.stack(sums).sum(0).tolist() == pytest.approx(whole.tolist(), rel=1e-9)


def test_a_rank_encodes_only_the_validation_batches_of_its_turn(monkeypatch):
    """One at a time: pictures of a whole split are never held together, on no rank."""
    import mcit.train.loop as module

    work, _ = work_of(plan_of(eval={"tasks": "none", "validate_every": 2}))
    events = []
    encode, forward = Encoder.encode, work.engine.forward
    monkeypatch.setattr(Encoder, "encode", lambda self, row: events.append("row") or encode(self, row))
    monkeypatch.setattr(work.engine, "forward", lambda batch: events.append(len(batch.rows)) or forward(batch))
    monkeypatch.setattr(module.world, "all_sum", lambda tensor: tensor)
    monkeypatch.setattr(module.world, "size", lambda: 2)
    work.validate()
    passes = [k for k, event in enumerate(events) if event != "row"]
    assert len(passes) > 1
    assert [events[k] for k in passes] == [k - before - 1 for before, k in zip([-1, *passes], passes, strict=False)]


def test_dropout_does_not_depend_on_what_the_process_did_before(tmp_path):
    """Two processes, as after a restart between stages: the random state at a stage's start is the stage's own."""
    plan = plan_of(defaults={"adapter": {"rank": 4, "alpha": 8, "dropout": 0.3}, "max_steps": 2})
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(tensors_of(run_plan(plan, tmp_path / str(seed))))
    assert results[0] == results[1]
    without = plan_of(defaults={"adapter": {"rank": 4, "alpha": 8}, "max_steps": 2})
    assert tensors_of(run_plan(without, tmp_path / "without")) != results[0]


def test_notes_of_a_restored_checkpoint_are_told(tmp_path):
    work, _ = work_of(plan_of())
    told = []
    reporter = Silent()
    reporter.line = told.append
    work.engine.notes.append("of another number of ranks")
    train_stage(work, draft(tmp_path), reporter=reporter)
    assert told == ["note: of another number of ranks"]


def test_method_shares_are_logged(tmp_path):
    plan = plan_of(defaults={"methods": [{"name": "l2", "weight": 0.1}, {"name": "lwf", "from_stage": 1}]})
    work, _ = work_of(plan)
    d = draft(tmp_path)
    train_stage(work, d, reporter=Silent())
    assert d.lines[0]["penalty/l2"] == 0.0 and d.lines[-1]["penalty/l2"] > 0
    assert d.lines[0]["loss/lwf"] == pytest.approx(0, abs=1e-6) and d.lines[-1]["loss/lwf"] > 0


def test_audit_says_what_trains():
    _, model = work_of(plan_of())
    text = "\n".join(audit_lines(model))
    assert "projector   trained         6,272" in text and "tower       trained             0" in text


def test_gradient_checkpointing_trains_the_same(tmp_path):
    losses = []
    for on in (False, True):
        plan = plan_of(engine={"micro_batch": 4, "workers": 0, "gradient_checkpointing": on})
        work, _ = work_of(plan)
        d = Draft(tmp_path / str(on))
        train_stage(work, d, reporter=Silent())
        losses.append([line["loss"] for line in d.lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---- what methods do around the steps --------------------------------------------------------------------------------
class Reader(Method):
    """At the end of a stage: a pass over six rows, one log line."""

    seen = 0

    def on_stage_start(self, ctx):
        for _ in ctx.forward_pass("task", rows=2, limit=4):
            pass

    def on_stage_end(self, ctx):
        for _ in ctx.gradient_pass("task", limit=6):
            type(self).seen += 1
        ctx.log("reader/step", float(ctx.step))


def reading(**checkpoint):
    Reader.seen = 0
    methods = [{"name": "tests.train.test_loop:Reader"}]
    return plan_of(defaults={"methods": methods, "max_steps": 2}, checkpoint={"every": 1, **checkpoint})


def test_what_is_logged_at_the_end_of_a_stage_is_kept(tmp_path):
    work, _ = work_of(reading())
    assert train_stage(work, draft(tmp_path), reporter=Silent())["logged"] == {"reader/step": 1.0}


def test_a_stage_resumed_after_its_last_step_knows_where_it_is(tmp_path):
    """`base_pass` at its end used the trained model as the base."""
    plan = reading()
    straight, _ = work_of(plan)
    d = draft(tmp_path)
    train_stage(straight, d, reporter=Silent())
    work, _ = work_of(plan)
    assert work.ctx._at_base
    d.resume_from = 2
    assert train_stage(work, d, reporter=Silent())["logged"] == {"reader/step": 1.0} and not work.ctx._at_base


def test_passes_around_a_stage_show_progress_and_give_way_to_a_signal(tmp_path):
    """The signal comes in the third of six passes at the end; the next start runs that hook again, whole."""
    shown, reporter = [], Silent()
    reporter.progress = shown.append
    work, _ = work_of(reading())
    d = draft(tmp_path)
    with pytest.raises(Interrupted, match="at the end of the stage") as error:
        train_stage(work, d, reporter=reporter, stop=lambda: Reader.seen == 3)
    assert error.value.exit_code == 75 and Reader.seen == 3
    passes = [(p.phase, p.done, p.total) for p in shown if p.phase != "train"]
    assert passes == [("start", 2, 4), ("start", 4, 4), ("end", 1, 6), ("end", 2, 6), ("end", 3, 6)]
    work, _ = work_of(reading())
    d.resume_from = 2
    assert train_stage(work, d, reporter=Silent())["steps"] == 2 and Reader.seen == 6


def test_without_a_checkpoint_of_the_last_step_the_end_is_finished(tmp_path):
    """There is nothing to come back to: stopping would lose the stage."""
    work, _ = work_of(reading(every=0))
    assert train_stage(work, draft(tmp_path), reporter=Silent(), stop=lambda: Reader.seen == 3)["steps"] == 2
    work, _ = work_of(reading(every=0))
    with pytest.raises(Interrupted, match="at the start of the stage"):
        train_stage(work, draft(tmp_path), reporter=Silent(), stop=lambda: True)


class Looker(Method):
    """Reads a loss in the middle of every step and after it."""

    def loss_term(self, out, batch, ctx):
        list(ctx.forward_pass("task", limit=2))

    def after_step(self, ctx):
        assert len(list(ctx.gradient_pass("task", limit=2))) == 2


def test_passes_beside_steps_change_nothing(tmp_path):
    """With dropout, so that a random number drawn in a pass would show."""
    settings = {"adapter": {"rank": 4, "alpha": 8, "dropout": 0.3}, "max_steps": 2}
    without = run_plan(plan_of(defaults=settings), tmp_path / "without", only=1)
    looking = {**settings, "methods": [{"name": "tests.train.test_loop:Looker"}]}
    beside = run_plan(plan_of(defaults=looking), tmp_path / "beside", only=1)
    assert tensors_of(without) == tensors_of(beside)


def test_validation_does_not_change_what_is_trained(tmp_path):
    settings = {"adapter": {"rank": 4, "alpha": 8, "dropout": 0.3}, "max_steps": 2}
    results = []
    for every in (0, 1):
        plan = plan_of(defaults=settings, eval={"tasks": "none", "validate_every": every})
        results.append(tensors_of(run_plan(plan, tmp_path / str(every), only=1)))
    assert results[0] == results[1]


def test_passes_in_a_step_neither_report_nor_stop(tmp_path):
    """What watches the passes at a stage's start is gone when its steps begin."""
    shown, reporter = [], Silent()
    reporter.progress = lambda p: shown.append(p.phase)
    methods = [{"name": "tests.train.test_loop:Looker"}, {"name": "tests.train.test_loop:Reader"}]
    work, _ = work_of(plan_of(defaults={"methods": methods, "max_steps": 2}))
    train_stage(work, draft(tmp_path), reporter=reporter)
    assert shown == ["start"] * 2 + ["train"] * 2 + ["end"] * 6


class Ending(Method):
    """Ends the stage after a step."""

    after = 2

    def after_step(self, ctx):
        if ctx.step + 1 == self.after:
            ctx.end_stage("far enough")
            ctx.end_stage("said again")

    def on_stage_end(self, ctx):
        ctx.log("ending/step", float(ctx.step))


class Early(Method):
    def loss_term(self, out, batch, ctx):
        ctx.end_stage("in the middle of a step")


class Watched:
    """Stands for the probes of a stage: what they were asked, and a time they took."""

    def __init__(self, took=0.0):
        self.asked, self.took = [], took

    def resume(self, draft):
        self.asked.append("resume")

    def at(self, step, total, draft, *, trained):
        self.asked.append((step, total, trained > 0))
        return self.took

    def due(self, step, total):
        return True

    def lines(self, name):
        return [name, len(self.asked)]


def test_probes_are_asked_before_the_first_step_and_after_each(tmp_path):
    plan = plan_of(checkpoint={"every": 2})
    work, d = work_of(plan)[0], draft(tmp_path)
    work.probes = Watched(took=1e6)
    done = train_stage(work, d, reporter=Silent())
    steps = [(0, 4, False), *((k, 4, True) for k in (1, 2, 3, 4))]
    assert work.probes.asked[:2] == ["resume", (0, 4, False)]
    assert [ask[:2] for ask in work.probes.asked[1:]] == [step[:2] for step in steps]
    assert done["seconds"] < 0, "what probes take counts as no training"
    again = work_of(plan)[0]
    again.probes, d.resume_from, d.extra = Watched(), 2, {}
    d.cursors = {name: 0 for name in d.cursors}
    train_stage(again, d, reporter=Silent())
    assert again.probes.asked == ["resume", *steps[3:]]
    ends, d = work_of(plan_of(defaults={"methods": [{"name": "tests.train.test_loop:Ending"}]}))[0], draft(tmp_path)
    ends.probes = Watched()
    train_stage(ends, d, reporter=Silent())
    assert ends.probes.asked[1:] == [(0, 4, False), (1, 4, True), (2, 2, True)]


def test_a_monitor_ends_the_stage_by_what_the_probe_has_on_record(tmp_path):
    asked = []
    work = work_of(plan_of())[0]
    work.probes, work.monitor = Watched(), lambda lines: asked.append(lines) or ("drifts" if len(asked) == 2 else "")
    done = train_stage(work, draft(tmp_path), reporter=Silent())
    assert done["ended"] == {"step": 2, "planned": 4, "reason": "drifts"} and [a[0] for a in asked] == ["stability"] * 2
    work, asked = work_of(plan_of())[0], []
    work.probes, work.monitor = Watched(), lambda lines: asked.append(lines) or ""
    assert "ended" not in train_stage(work, draft(tmp_path), reporter=Silent()) and len(asked) == 4
    work = work_of(plan_of())[0]
    work.probes, work.monitor = Watched(), lambda lines: "drifts" if work.probes.asked[-1][0] == 4 else ""
    done = train_stage(work, draft(tmp_path), reporter=Silent())
    assert done["ended"] == {"step": 4, "planned": 4, "reason": "drifts"}, "the gate has to know of it"
    assert work.probes.asked[-2:] == [(3, 4, True), (4, 4, True)], "and the end is measured once"
    work = work_of(plan_of(defaults={"methods": [{"name": "tests.train.test_loop:Ending"}]}))[0]
    work.probes, work.monitor = Watched(), lambda lines: "drifts" if work.probes.asked[-1][0] == 2 else ""
    assert train_stage(work, draft(tmp_path), reporter=Silent())["ended"]["reason"].startswith("drifts; ")


def test_the_optimiser_of_the_stage_below_goes_on_from_its_start_alone(tmp_path, monkeypatch):
    import mcit.train.loop as module

    taken, plan = [], plan_of(defaults={"max_steps": 2}, checkpoint={"every": 1})
    monkeypatch.setattr(module, "read_moments", lambda folder: ("moments of", folder))
    for below, resume_from in ((None, None), (tmp_path, None), (tmp_path, 1)):
        work, d = work_of(plan)[0], draft(tmp_path)
        if resume_from:
            with pytest.raises(Interrupted):
                train_stage(work_of(plan)[0], d, reporter=Silent(), stop=lambda: True)
            d.resume_from = resume_from
        work.below = below
        monkeypatch.setattr(
            work.engine, "take_over", lambda moments, case=(below, resume_from): taken.append((case, moments))
        )
        train_stage(work, d, reporter=Silent())
        assert work.left is None
    assert taken == [((tmp_path, None), ("moments of", tmp_path))]
    keeping = work_of(plan_of(defaults={"max_steps": 1, "optim": {"batch": 8, "lr": 1e-2, "moments": "keep"}}))[0]
    train_stage(keeping, draft(tmp_path), reporter=Silent())
    assert keeping.left is not None


class Seeded(Method):
    """Notes the seed of the random state at the start of the stage."""

    seed = None

    def on_stage_start(self, ctx):
        type(self).seed = torch.initial_seed()


def test_dropout_has_the_stages_own_seed(tmp_path):
    work = work_of(plan_of(defaults={"max_steps": 1, "methods": [{"name": "tests.train.test_loop:Seeded"}]}))[0]
    train_stage(work, draft(tmp_path), reporter=Silent())
    assert Seeded.seed == seed_for(work.stage.seed, "rng", 0, 0)


@pytest.mark.parametrize(
    ("every", "step", "last", "due"),
    [(0, 3, True, False), (3, 3, False, True), (3, 4, False, False), (3, 4, True, True), (1, 5, False, True)],
)
def test_a_checkpoint_is_due(every, step, last, due):
    assert _due(SimpleNamespace(checkpoint=SimpleNamespace(every=every)), step, last=last) is due


@pytest.fixture
def clock(monkeypatch):
    import mcit.train.loop as module

    now = SimpleNamespace(at=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.at))
    return now


def test_the_meter_counts_over_restarts_and_tells_how_long_it_will_take(clock, monkeypatch):
    """Two stages of 10 steps come after one that was stopped after step 4."""
    stage = SimpleNamespace(index=2, name="n", steps=10)
    monkeypatch.setattr("mcit.train.loop.peak_bytes", lambda device: 1000)
    work = SimpleNamespace(stage=stage, stages=3, later_steps=20, device=None, trained=4096)
    assert Meter(work, 0).state() == {"tokens": 0, "seconds": 0.0, "loss": None, "peak_bytes": 1000}
    meter = Meter(work, 4, tokens=50, seconds=7.5, loss=0.5, peak_bytes=2000)
    assert meter.progress == Progress(2, 3, "n", "train", 4, 10)
    assert meter.state() == {"tokens": 50, "seconds": 7.5, "loss": 0.5, "peak_bytes": 2000}
    clock.at = 102.0
    assert meter.after(5, {"tokens": 30, "loss": 0.25}, clock.at) == {"tokens": 30, "loss": 0.25, "seconds": 2.0}
    assert meter.progress == Progress(2, 3, "n", "train", 5, 10, 0.25, 15.0, 10.0, 50.0)
    clock.at = 103.5
    meter.skip(0.5)  # 3 s for two steps, 1 s for the last
    assert meter.after(6, {"tokens": 8, "loss": 0.125}, clock.at)["seconds"] == 1.0
    assert meter.progress == Progress(2, 3, "n", "train", 6, 10, 0.125, 8.0, 6.0, 36.0)
    assert meter.seconds == 10.5
    assert (
        meter.after(7, {"tokens": 8, "loss": 0.125}, clock.at)["seconds"] == 0.0 and meter.progress.tokens_per_s is None
    )
    clock.at = 103.94123
    assert meter.after(8, {"tokens": 1, "loss": 0.125}, clock.at)["seconds"] == 0.4412
    assert meter.progress.tokens_per_s == pytest.approx(1 / 0.44123)
    assert meter.state() == {"tokens": 97, "seconds": 10.941, "loss": 0.125, "peak_bytes": 2000}
    assert meter.summary(SimpleNamespace(step=7, ended=None)) == {
        "steps": 10, "tokens": 97, "seconds": 10.941, "loss": 0.125, "trained": 4096, "peak_bytes": 2000,
    }  # fmt: skip
    ended = meter.summary(SimpleNamespace(step=7, ended="why"))
    assert ended["steps"] == 8 and ended["ended"] == {"step": 8, "planned": 10, "reason": "why"}


def test_a_stage_alone_has_no_steps_after_it_and_no_validation():
    work = StageWork(*[None] * 7)
    assert (work.later_steps, work.validate_every, work.log_every, work.frozen, work.trained) == (0, 0, 1, {}, 0)


def answering(*batches):
    """An engine whose logits say token 1 everywhere, with a loss of 2 for each target; and the batches it was given."""
    given = []

    def forward(batch):
        given.append(batch)
        logits_NV = torch.tensor([[0.0, 1.0, 0.0]]).expand(len(batch.targets), 3)
        return SimpleNamespace(
            logits_NV=logits_NV, targets_N=torch.tensor(batch.targets), nll_N=torch.tensor(batch.nll)
        )

    made = [SimpleNamespace(targets=t, nll=[2.0] * len(t), target_count=len(t)) for t in batches]
    engine = SimpleNamespace(forward=forward, quiet=contextlib.nullcontext)
    return validation(engine, made, lambda rows: made[made.index(*rows)], size=1), made, given


def test_validation_by_hand(monkeypatch):
    import mcit.train.loop as module

    score, made, given = answering([1, 2, 1], [1], [0, 0])
    assert score() == {"validation/loss": 2.0, "validation/token_accuracy": 0.5} and given == made
    assert answering([1])[0]() == {"validation/loss": 2.0, "validation/token_accuracy": 1.0}
    assert answering()[0]() == {"validation/loss": 0.0, "validation/token_accuracy": 0.0}
    monkeypatch.setattr(module.world, "all_sum", lambda tensor: tensor)
    monkeypatch.setattr(module.world, "size", lambda: 2)
    for rank, mine in ((0, [0, 2]), (1, [1, 0])):  # the second rank runs the first batch once more, and counts it not
        monkeypatch.setattr(module.world, "rank", lambda rank=rank: rank)
        score, made, given = answering([1, 2, 1], [1], [0, 0])
        assert score()["validation/token_accuracy"] == (2 / 5, 1.0)[rank] and given == [made[k] for k in mine]


def test_a_stage_may_end_early(tmp_path):
    told, reporter = [], Silent()
    reporter.line = told.append
    plan = plan_of(defaults={"methods": [{"name": "tests.train.test_loop:Ending"}]}, checkpoint={"every": 3})
    work, _ = work_of(plan)
    d = draft(tmp_path)
    done = train_stage(work, d, reporter=reporter)
    assert done["steps"] == len(d.lines) == 2 and done["logged"] == {"ending/step": 1.0}
    assert done["ended"] == {"step": 2, "planned": 4, "reason": "far enough"}
    assert told == ["stage 01-letter ends after step 2 of 4: far enough"]
    assert d.last == 2, "the last step has a checkpoint, whichever it is"
    again, _ = work_of(plan)
    d.resume_from, d.extra = 2, d.kept
    assert train_stage(again, d, reporter=Silent())["ended"] == done["ended"] and len(d.lines) == 2
    early, _ = work_of(plan_of(defaults={"methods": [{"name": "tests.train.test_loop:Early"}]}))
    with pytest.raises(TrainingError, match="end_stage is for after_step"):
        train_stage(early, draft(tmp_path), reporter=Silent())


def test_records_of_a_run_take_what_is_written(tmp_path):
    plan = plan_of(defaults={"methods": [{"name": "tests.train.test_loop:Ending"}]})
    work, _ = work_of(plan)
    done = train_stage(work, draft(tmp_path), reporter=Silent())
    assert ProgressRecord.model_validate(done).ended.step == 2
    assert PlanRecord.model_validate(plan_json(plan)).stages[0].passes == 1.0
