import contextlib
import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch

from mcit.core.config import load_yaml, parse
from mcit.core.errors import DataError, PlanError, StateError, TrainingError
from mcit.core.paths import shipped
from mcit.core.types import Counts, ModelOutput, WeightUnit
from mcit.methods.gs_lora import GSLoRA, _refused
from mcit.models import adapters
from mcit.models.adapterfile import AdapterFile, LoraPair, read_adapter
from tests.fakes import steps
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.models import tiny_model
from tests.fakes.settings import refused, shipped_config
from tests.fakes.sharded import ShardedEngine

PROX = {"name": "gs_lora", "per_step": 4, "treatment": "proximal", "alpha": 1e4}
STAGES = [{"recipe": r, "forget": "tiny/word-forget"} for r in ("tiny/letter", "tiny/word-retain")]


def method(**settings):
    return GSLoRA(GSLoRA.Config(**settings))


def stage(*, rows=480, batch=48, steps=100, index=2):
    optim, adapter = SimpleNamespace(batch=batch, weight_decay=0.0), SimpleNamespace(also_train=[])
    return SimpleNamespace(index=index, name="s", rows=rows, steps=steps, optim=optim, adapter=adapter)


def step_context(*, rows=2, tokens=3, step=0, **stage_settings):
    made = steps.context()
    made.stage, made.step, made.lr = stage(**stage_settings), step, 0.1
    made.counts = Counts({"forget": tokens}, {"forget": rows})
    return made


def output(*nll_by_row, vocabulary=8):
    """Token losses of each row, with logits of a size."""
    nll = torch.tensor([v for row in nll_by_row for v in row], requires_grad=True)
    row = torch.tensor([i for i, values in enumerate(nll_by_row) for _ in values])
    return ModelOutput(torch.zeros(len(nll), vocabulary), torch.zeros_like(row), row, nll)


def batch_of(count, stream="forget"):
    one = steps.batch(stream)
    rows = tuple(dataclasses.replace(one.rows[0], id=str(i)) for i in range(count))
    return dataclasses.replace(one, rows=rows)


def term(given, out, *, tokens, **kwargs):
    rows = int(out.row_N.max()) + 1
    found = given.loss_term(out, batch_of(rows), step_context(rows=rows, tokens=tokens, **kwargs))
    assert found.per == "rows"
    return (found.sum / rows).item()


# ---- the forget loss -------------------------------------------------------------------------------------------------
def test_bound_per_token_is_the_default_and_a_mean_over_tokens():
    """Oracle 3: losses 2, 14 and 1 under bound 10: 17 / 3 = 5.6667, however they lie in rows; times beta 2."""
    for rows in ([[2.0, 14, 1]], [[2.0, 14], [1.0]], [[2.0], [14.0], [1.0]]):
        assert term(method(bound=10), output(*rows), tokens=3) == pytest.approx(17 / 3)
    assert term(method(bound=10, beta=2), output([2.0, 14, 1]), tokens=3) == pytest.approx(34 / 3)


def test_bound_per_row_and_on_the_batch():
    """Rows (2, 14) and (1): means 8 and 1, so (2 + 9) / 2; on the batch 10 - 17/3."""
    out = output([2.0, 14], [1.0])
    assert term(method(bound=10, reduction="rows"), out, tokens=3) == 5.5
    assert term(method(bound=10, reduction="authors"), out, tokens=3) == pytest.approx(4.3333, abs=1e-4)


def test_total_by_hand():
    """Oracle 4: retained 1.7, forgotten 30 under 105 at beta 0.2, a group of norm 13 at 1e-4: 1.7 + 15 + 0.0013 = 16.7013."""
    given = method(bound=105, beta=0.2, reduction="authors", alpha=1e-4)
    forget = term(given, output([30.0]), tokens=1)
    penalty = given.weight_penalty(block(), {"a": torch.tensor([5.0]), "b": torch.tensor([12.0])}, step_context())
    assert 1.7 + forget + penalty.item() == pytest.approx(16.7013, abs=1e-4)


def test_uniform_bound_is_the_log_of_the_vocabulary():
    """Oracle 2: ln 32000 - 2.5 = 7.8735."""
    assert term(method(), output([2.5], vocabulary=32_000), tokens=1) == pytest.approx(7.8735, abs=1e-4)


def test_spared_tokens_are_neither_pushed_nor_counted():
    """(1, 4, 2) and (3, 2) with the last of each spared, bound 10: (9 + 6 + 7) / 3."""
    given = method(bound=10)
    given._spare = [0, 1]
    assert term(given, output([1.0, 4, 2], [3.0, 2]), tokens=5) == pytest.approx(22 / 3)


def test_bounds_of_rows():
    """Ignorance levels 3 and 5 against losses (1, 2) and (4): (2 + 1 + 1) / 3."""
    given = method(bound="ignorance")
    given._bounds = {"t/0": 3.0, "t/1": 5.0}
    assert term(given, output([1.0, 2], [4.0]), tokens=3) == pytest.approx(4 / 3)


def test_authors_form_is_refused_on_a_part_of_the_step():
    with pytest.raises(TrainingError, match="holds 1 of 2 rows"):
        method(bound=10, reduction="authors").loss_term(output([1.0]), batch_of(1), step_context(rows=2, tokens=2))


def test_other_streams_are_left_alone():
    for stream in ("task", "replay"):
        assert method().loss_term(output([1.0]), batch_of(1, stream), step_context()) is None


def test_blind_target_is_the_divergence_from_the_blind_reference():
    """beta 0, omega 3: KL((3/4, 1/4) || (1/2, 1/2)) = 0.130812 on the one pushed token; the spared one does not count."""
    given = method(beta=0, target="blind", omega=3)
    given._spare = [0, 1]
    out = output([1.0, 1.0], vocabulary=2)
    blind = dataclasses.replace(out, logits_NV=torch.tensor([[math.log(3), 0.0], [9.0, 0.0]]))
    ctx, seen = step_context(rows=1, tokens=2), []
    ctx.reference = lambda batch: seen.append(batch) or blind
    sighted = dataclasses.replace(batch_of(1), pixels={"pixel_values": torch.ones(1, 3, 2, 2)})
    assert given.loss_term(out, sighted, ctx).sum.item() == pytest.approx(3 * 0.130812, abs=1e-5)
    assert not seen[0].pixels["pixel_values"].any()


def test_blind_divergence_is_a_mean_over_the_pushed_tokens_of_the_step():
    """0.130812 on each of 3 tokens in 2 rows, of 6 in 4 rows of the step: omega 3 times 4 rows times 3 * 0.130812 / 6."""
    given = method(beta=0, target="blind", omega=3)
    out, ctx = output([1.0, 1.0], [1.0], vocabulary=2), step_context(rows=4, tokens=6)
    ctx.reference = lambda batch: dataclasses.replace(out, logits_NV=torch.tensor([[math.log(3), 0.0]] * 3))
    assert given.loss_term(out, batch_of(2), ctx).sum.item() == pytest.approx(3 * 4 * 3 * 0.130812 / 6, abs=1e-5)


def test_omega_zero_asks_for_no_reference():
    """The passes through the reference are what the blind target costs."""
    ctx = step_context(rows=1, tokens=1)
    ctx.reference = None
    assert method(beta=0, target="blind", omega=0).loss_term(output([1.0]), batch_of(1), ctx).sum.item() == 0


# ---- refusals --------------------------------------------------------------------------------------------------------
def test_refusals_replace_every_answer_and_are_drawn_once():
    rows = steps.rows("t", 40)
    given = method(target="refusal", refusals=["no", "never"], omega=2)
    ctx = SimpleNamespace(forget_rows=lambda: rows, seed=5)
    opened = given.streams(ctx)
    assert set(opened) == {"forget", "refusal"} and [r.id for r in opened["refusal"].rows] == [r.id for r in rows]
    answers = [r.answer for r in opened["refusal"].rows]
    assert set(answers) == {"no", "never"} and answers == [r.answer for r in given.streams(ctx)["refusal"].rows]
    two = dataclasses.replace(rows[0], turns=rows[0].turns * 2)
    assert [t.text for t in _refused(two, ["no"], 0).turns] == ["q", "no", "q", "no"]
    found = given.loss_term(output([1.0, 2.0]), batch_of(1, "refusal"), step_context())
    assert (found.sum.item(), found.per) == (6.0, "tokens")


def test_a_refusal_of_ones_own_is_enough():
    assert refused(GSLoRA, refusals=["no"]) == [] and refused(GSLoRA, refusals=[]) == ["refusals"]


@pytest.mark.parametrize("settings", [{"bound": "ignorance"}, {"target": "blind"}])
def test_rows_without_a_picture_have_nothing_to_be_blind_to(settings):
    ctx = SimpleNamespace(forget_rows=lambda: steps.rows("t", 1), seed=5)
    with pytest.raises(DataError, match="no picture") as error:
        method(**settings).streams(ctx)
    assert error.value.where == "t.json:0:t0"


def test_a_missing_meta_key_names_its_row():
    ctx = SimpleNamespace(forget_rows=lambda: steps.rows("t", 1), seed=5)
    with pytest.raises(DataError, match="no meta 'kind'"):
        method(prototypes={"forget": 1, "by": "meta.kind"}).streams(ctx)


# ---- prototypes ------------------------------------------------------------------------------------------------------
def seen(stream, *embeddings, answers):
    """A batch of rows with one predicting position each, and hidden states there."""
    count = len(embeddings)
    made = batch_of(count, stream)
    rows = tuple(
        dataclasses.replace(r, turns=(r.turns[0], dataclasses.replace(r.turns[1], text=a)))
        for r, a in zip(made.rows, answers, strict=True)
    )
    labels = torch.tensor([[-100, 7]] * count)
    hidden = torch.stack([torch.tensor([e, [99.0] * len(e)]) for e in embeddings])
    out = dataclasses.replace(output(*[[1.0]] * count), hidden={"last": hidden})
    return dataclasses.replace(made, rows=rows, labels_BT=labels), out


def started(given, forget, task):
    """The method after its start hook, on batches of the two streams."""
    ctx = step_context()
    ctx.forward_pass = lambda stream, **kw: iter([forget if stream == "forget" else task])
    given.on_stage_start(ctx)
    return given


def test_prototypes_are_means_by_target_and_the_bound_is_their_median_distance():
    """dog (0, 2) and (2, 2), cat (4, 0): means (1, 2) and (4, 0); l2 (9 + 4) / 2 = 6.5."""
    p = {"forget": 1, "retain": 2, "distance": "l2"}
    forget = seen("forget", [0.0, 2], [2.0, 2], answers=["dog", "dog"])
    task = seen("task", [4.0, 0], answers=["cat"])
    given = started(method(beta=0, prototypes=p), forget, task)
    assert given._targets == ["dog", "cat"] and given._push == 6.5
    assert given.tensors.get("prototype", "all").tolist() == [[1, 2], [4, 0]]
    moved = seen("forget", [1.0, 4], [9.0, 2], answers=["dog", "dog"])  # distances 2 and 32
    assert given.loss_term(moved[1], moved[0], step_context()).sum.item() == 4.5
    kept = seen("task", [4.0, 2], [5.0, 5], answers=["cat", "bird"])  # distance 2; no prototype of birds
    found = given.loss_term(kept[1], kept[0], step_context())
    assert (found.sum.item(), found.per) == (4.0, "rows")


def test_authors_push_bounds_the_batch_mean():
    """Distances 2 and 32 under bound 20: mean 17, so 3; per row (18 + 0) / 2 = 9."""
    forget, task = seen("forget", [1.0, 2], answers=["dog"]), seen("task", [4.0, 0], answers=["cat"])
    moved = seen("forget", [1.0, 4], [9.0, 2], answers=["dog", "dog"])
    for reduction, value in (("authors", 3), ("tokens", 9)):
        p = {"forget": 1, "distance": "l2", "bound": 20}
        given = started(method(beta=0, reduction=reduction, prototypes=p), forget, task)
        assert given.loss_term(moved[1], moved[0], step_context(tokens=2)).sum.item() / 2 == value


def test_a_median_needs_another_target():
    with pytest.raises(DataError, match="also forgotten"):
        both = [seen(s, [1.0, 2], answers=["dog"]) for s in ("forget", "task")]
        started(method(prototypes={"forget": 1}), *both)


def test_ignorance_is_the_blind_loss_plus_a_margin_at_most_uniform():
    """Blind means 0.5 and 9 in a vocabulary of 8: 0.5 + 1 and ln 8."""
    given, ctx = method(bound="ignorance", spare="none"), step_context()
    changed = []

    def forward_pass(stream, *, change):
        changed.append(
            (stream, change(dataclasses.replace(batch_of(2), pixels={"p": torch.ones(2)})).pixels["p"].sum().item())
        )
        return iter([(batch_of(2), output([0.25, 0.75], [9.0]))])

    ctx.forward_pass = forward_pass
    given.on_stage_start(ctx)
    assert given._bounds == pytest.approx({"t/0": 1.5, "t/1": math.log(8)}) and changed == [("forget", 0.0)]


def test_a_target_is_an_answer_a_task_or_a_value_of_meta():
    """Of one row with answer a, task t and kind 3: the name of its prototype."""
    forget, task = seen("forget", [1.0, 2], answers=["a"]), seen("task", [4.0, 0], answers=["b"])
    rows = tuple(dataclasses.replace(r, meta={"kind": 3}) for r in forget[0].rows)
    forget = (dataclasses.replace(forget[0], rows=rows), forget[1])
    elsewhere = tuple(dataclasses.replace(r, task="u", meta={"kind": 4}) for r in task[0].rows)
    task = (dataclasses.replace(task[0], rows=elsewhere), task[1])
    for by, names in (("answer", ["a", "b"]), ("task", ["t", "u"]), ("meta.kind", ["3", "4"])):
        assert started(method(prototypes={"forget": 1, "by": by}), forget, task)._targets == names


def test_retained_rows_alone_may_have_prototypes():
    """forget 0, retain 0.5: cat stays at (4, 0), from which (4, 2) is 4 / 2 = 2 away in l2; half of that."""
    p = {"retain": 0.5, "distance": "l2"}
    forget, task = seen("forget", [1.0, 2], answers=["dog"]), seen("task", [4.0, 0], answers=["cat"])
    given = started(method(beta=0, prototypes=p), forget, task)
    kept = seen("task", [4.0, 2], answers=["cat"])
    assert given.loss_term(kept[1], kept[0], step_context()).sum.item() == 1.0


def test_what_is_retained_too_has_the_prototype_of_the_forgotten_rows():
    """dog at (1, 2) among the rows to forget, at (5, 6) among the retained: one prototype, and a bound as given."""
    both = seen("forget", [1.0, 2], answers=["dog"]), seen("task", [5.0, 6], answers=["dog"])
    given = started(method(prototypes={"forget": 1, "bound": 3}), *both)
    assert given._targets == ["dog"] and given._push == 3.0
    assert given.tensors.get("prototype", "all").tolist() == [[1, 2]]


def test_rows_without_a_prototype_or_an_answer_are_not_moved():
    """dog at (1, 2), bound 20: of two dogs at (1, 4) the one that only keeps ranks in step, nothing supervised, adds nothing:
    20 - 2. A bird has no prototype: 0, and hidden states get no gradient."""
    p = {"forget": 1, "retain": 1, "distance": "l2", "bound": 20}
    forget, task = seen("forget", [1.0, 2], answers=["dog"]), seen("task", [4.0, 0], answers=["cat"])
    given = started(method(beta=0, prototypes=p), forget, task)
    batch, out = seen("forget", [1.0, 4], [1.0, 4], answers=["dog", "dog"])
    labels = batch.labels_BT.clone()
    labels[1] = -100
    found = given.loss_term(out, dataclasses.replace(batch, labels_BT=labels), step_context())
    assert found.sum.item() == 18.0
    for stream in ("forget", "task"):
        batch, out = seen(stream, [1.0, 4], answers=["bird"])
        out = dataclasses.replace(out, hidden={"last": out.hidden_BTD.requires_grad_()})
        found = given.loss_term(out, batch, step_context())
        assert found.sum.item() == 0.0 and not found.sum.requires_grad


def answered(stream, *answers):
    """Rows with these supervised tokens."""
    out = output(*[[1.0] * len(answer) for answer in answers])
    return batch_of(len(answers), stream), dataclasses.replace(out, targets_N=torch.tensor(sum(answers, [])))


def test_what_every_answer_begins_and_ends_with_is_spared():
    """Forgotten 5 1 9 and 5 2 9, retained 5 3 3 9: all begin with 5 and end with 9. Without sparing nothing is looked at."""
    forget, task = answered("forget", [5, 1, 9], [5, 2, 9]), answered("task", [5, 3, 3, 9])
    assert started(method(), forget, task)._spare == [1, 1]
    assert started(method(), forget, answered("task", [5, 3, 3, 8]))._spare == [1, 0]
    assert started(method(), forget, answered("task", [4, 3, 3, 9]))._spare == [0, 1]
    ctx = step_context()
    ctx.forward_pass = None
    given = method(spare="none")
    given.on_stage_start(ctx)
    assert given._spare == [0, 0]


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({}, 64), ({"prototypes": {"forget": 1}}, 256), ({"prototypes": {"retain": 1}}, None)],
)
def test_so_many_retained_rows_are_looked_at(settings, limit):
    """Prototypes and spared tokens come of these rows: a run that is made again has to look at as many. Held rows all count."""
    ctx, asked = step_context(), {}
    batches = {"forget": seen("forget", [1.0, 2], answers=["dog"]), "task": seen("task", [4.0, 0], answers=["cat"])}

    def forward_pass(stream, **kw):
        asked[stream] = kw
        return iter([batches[stream]])

    ctx.forward_pass = forward_pass
    method(**settings).on_stage_start(ctx)
    assert asked == {"forget": {}, "task": {"limit": limit}}


def test_before_its_first_stage_a_method_has_no_state():
    empty = {"spare": [0, 0], "bounds": {}, "zero": [], "norms": {}, "targets": [], "push": 0.0}
    assert method().state_dict() == empty


def test_state_goes_to_disk_and_back():
    """As JSON; what a later version would have written beside it is refused."""
    state = {"spare": [1, 2], "bounds": {"t/0": 3.0}, "zero": ["x"], "norms": {"x": [0.0, 0.0]}, "targets": ["dog"]}
    state["push"] = 0.5
    given = method()
    given.load_state_dict(json.loads(json.dumps(state)))
    assert given.state_dict() == state
    with pytest.raises(StateError, match="unknown state .'more'"):
        method().load_state_dict({**state, "more": 1})


# ---- the penalty -----------------------------------------------------------------------------------------------------
def block(name="layers.0", size=2):
    return WeightUnit(name, "block", {"a": f"{name}.a", "b": f"{name}.b"}, (size,), block=name)


def test_penalty_is_one_norm_per_block():
    """Oracles 1 and 5: norms 3, 4, 12 in a block: alpha 0.1 times 13, and gradient alpha theta / 13; by matrix 1.9."""
    tensors = {k: torch.tensor([v], requires_grad=True) for k, v in (("a", 3.0), ("b", 4.0), ("c", 12.0))}
    value = method(alpha=0.1).weight_penalty(block(), tensors, step_context())
    value.backward()
    assert value.item() == pytest.approx(1.3)
    assert [t.grad.item() for t in tensors.values()] == pytest.approx([0.3 / 13, 0.4 / 13, 1.2 / 13])
    assert method(alpha=0.1, groups="matrix").weight_penalty(block(), tensors, step_context()).item() == pytest.approx(
        1.9
    )


def test_penalty_waits_for_its_epoch():
    """Oracle 15: 480 rows in steps of 48: nothing in step 199, epoch 19; all of it in step 200, epoch 20."""
    given, tensors = method(alpha=0.01, alpha_epoch=20), {"a": torch.tensor([2.0])}
    assert given.weight_penalty(block(), tensors, step_context(step=199)) is None
    assert given.weight_penalty(block(), tensors, step_context(step=200)).item() == pytest.approx(0.02)


def test_units_asked_for():
    assert method().penalty_kinds == {"block"} and method(groups="pair").penalty_kinds == {"lora"}
    assert method(treatment="proximal").penalty_kinds == method(alpha=0).penalty_kinds == frozenset()


class FakeWeights:
    """Units with tensors that hooks may edit."""

    def __init__(self, **values):
        self.values = {name: {"a": torch.tensor(v)} for name, v in values.items()}
        self.forgotten = []

    def units(self, kind):
        return [block(name, size=t["a"].numel()) for name, t in self.values.items()] if kind == "block" else []

    @contextlib.contextmanager
    def edit(self, unit):
        yield self.values[unit.name]

    def forget_moments(self, unit):
        self.forgotten.append(unit.name)


def test_proximal_step_on_groups():
    """Oracle 6 at lr 0.1: (3, 4) at alpha 10 becomes (2.4, 3.2); a group of norm 1 becomes 0 for good, without moments."""
    given, ctx = method(treatment="proximal", alpha=10.0), step_context()
    ctx.weights = weights = FakeWeights(x=[3.0, 4.0], y=[0.6, -0.8])
    given.after_step(ctx)
    assert weights.values["x"]["a"].tolist() == pytest.approx([2.4, 3.2])
    assert weights.values["y"]["a"].tolist() == [0, 0] and weights.forgotten == ["y"]
    assert ctx.logged == {"penalty/gs_lora": pytest.approx(60), "gs_lora/zero_groups": 1}
    weights.values["y"]["a"].fill_(3.0)  # somebody else moved it
    given.after_step(ctx)
    assert weights.values["y"]["a"].tolist() == [0, 0] and weights.forgotten == ["y"]


def test_proximal_step_waits_and_weighs():
    """Sizes 1 and 3: the threshold 1 becomes sqrt(1/2) and sqrt(3/2)."""
    given, ctx = method(treatment="proximal", alpha=10.0, alpha_epoch=1, size_weights=True), step_context(step=9)
    ctx.weights = weights = FakeWeights(x=[2.0], y=[2.0, 0, 0])
    given.after_step(ctx)
    assert weights.values["x"]["a"].tolist() == [2.0] and not ctx.logged
    ctx.step = 10
    given.after_step(ctx)
    assert weights.values["x"]["a"].item() == pytest.approx(2 - math.sqrt(0.5))
    assert weights.values["y"]["a"].tolist() == pytest.approx([2 - math.sqrt(1.5), 0, 0])


def test_a_learning_rate_of_zero_shrinks_nothing():
    """The first step of a warm-up: the threshold is 0, so the factor is 1 and no group counts as zero."""
    given, ctx = method(treatment="proximal", alpha=10.0), step_context()
    ctx.weights, ctx.lr = FakeWeights(x=[3.0, 4.0]), 0.0
    given.after_step(ctx)
    assert ctx.weights.values["x"]["a"].tolist() == [3, 4] and ctx.weights.forgotten == []
    assert ctx.logged["gs_lora/zero_groups"] == 0


def test_the_subgradient_treatment_leaves_the_weights_to_the_optimizer():
    given, ctx = method(treatment="subgradient", alpha=10.0), step_context()
    ctx.weights = FakeWeights(x=[3.0, 4.0])
    given.after_step(ctx)
    assert ctx.weights.values["x"]["a"].tolist() == [3, 4] and ctx.logged == {}


class FakePairs(FakeWeights):
    """LoRA pairs of scale 2 in blocks: {name: (block, {role: matrix})}."""

    def __init__(self, pairs):
        super().__init__()
        self.pairs = {n: (home, {r: torch.tensor(v) for r, v in roles.items()}) for n, (home, roles) in pairs.items()}

    def units(self, kind):
        if kind == "block":
            return [block(name) for name in dict.fromkeys(home for home, _ in self.pairs.values())]
        return [WeightUnit(n, "lora", {r: r for r in v}, (1, 1), 2.0, home) for n, (home, v) in self.pairs.items()]

    def gathered(self, unit):
        return contextlib.nullcontext(self.pairs[unit.name][1])

    @contextlib.contextmanager
    def edit(self, unit):
        yield {n + r: t for n, (home, v) in self.pairs.items() if unit.name in (n, home) for r, t in v.items()}


def some_pairs():
    """Of block x: (3, 4) and (0, 12); of y: (1, 1) and a B alone, 1, whose A another method froze; of z: zeros."""
    return FakePairs(
        {
            "p": ("x", {"B": [[3.0]], "A": [[4.0]]}),
            "q": ("x", {"B": [[0.0]], "A": [[12.0]]}),
            "r": ("y", {"B": [[1.0]], "A": [[1.0]]}),
            "h": ("y", {"B": [[1.0]]}),
            "o": ("z", {"B": [[0.0]], "A": [[0.0]]}),
        }
    )


def test_sizes_of_groups_by_hand():
    """Norm of A and B, then of the change 2 B A. By pair: (5, 24), (12, 0), (sqrt 2, 2), (1, 0), 0.

    By block: |(5, 12)| = 13 and 24; sqrt 3 and 2; 0, which is the one zero group.
    """
    ctx = SimpleNamespace(weights=some_pairs())
    for groups, norms, zero in (
        ("pair", {"p": [5, 24], "q": [12, 0], "r": [math.sqrt(2), 2], "h": [1, 0], "o": [0, 0]}, ["o"]),
        ("block", {"x": [13, 24], "y": [math.sqrt(3), 2], "z": [0, 0]}, ["z"]),
    ):
        given = method(groups=groups)
        given.on_stage_end(ctx)
        state = given.state_dict()
        assert list(state["norms"]) == list(norms) and state["zero"] == zero
        for name, values in norms.items():
            assert state["norms"][name] == pytest.approx(values, abs=1e-6)


def test_pruning_is_after_the_last_step_alone():
    """Changes 24, 2 and 0 at share 0.5: y and z are set to 0 after step 3 of 3, x stays."""
    given, ctx = method(prune=0.5, alpha=0), step_context()
    ctx.weights, ctx.total_steps = some_pairs(), 3

    def values():
        return {n: [t.item() for t in roles.values()] for n, (_, roles) in ctx.weights.pairs.items()}

    before = values()
    for ctx.step in (0, 1):
        given.after_step(ctx)
        assert values() == before and ctx.weights.forgotten == []
    ctx.step = 2
    given.after_step(ctx)
    assert values() == {"p": [3, 4], "q": [0, 12], "r": [0, 0], "h": [0], "o": [0, 0]}
    assert ctx.weights.forgotten == ["y", "z"] and ctx.logged == {}


def test_nothing_is_pruned_unless_asked_for():
    """The last step of a stage: a group of which nothing changed keeps the initial values of A."""
    given, ctx = method(alpha=0), step_context()
    ctx.weights = FakePairs({"p": ("x", {"B": [[0.0]], "A": [[4.0]]})})
    given.after_step(ctx)
    assert ctx.weights.pairs["p"][1]["A"].item() == 4.0


# ---- checks ----------------------------------------------------------------------------------------------------------
def found(settings, **changes):
    plan_config = SimpleNamespace(engine=SimpleNamespace(micro_batch=4))
    given = stage()
    for key, value in changes.items():
        setattr(given.optim if key == "weight_decay" else given, key, value)
    return [(p.level, p.what) for p in method(**settings).check(given, SimpleNamespace(config=plan_config))]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"treatment": "proximal", "groups": "matrix"}, "groups: matrix"),
        ({"size_weights": True, "groups": "pair"}, "weighs blocks only"),
        (
            {"reduction": "authors", "bound": "ignorance", "per_step": 4, "spare": "none"},
            "one bound for the whole batch",
        ),
        (
            {"reduction": "authors", "per_step": 5, "spare": "none"},
            "the 5 rows to forget in one micro-batch, which holds 4",
        ),
        ({"alpha_epoch": 10}, "not reached in 100 steps"),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    (one,) = found(settings)
    assert one[0] == "problem" and words in one[1]


def test_notes():
    assert found({}) == [] and found({"alpha_epoch": 9.9}) == [] and found({"alpha": 0, "alpha_epoch": 99}) == []
    assert [level for level, _ in found({"target": "refusal"})] == ["note"]
    assert [level for level, _ in found({"treatment": "proximal"}, weight_decay=0.05)] == ["note"]
    assert found({}, weight_decay=0.05) == []


def test_a_stage_must_name_what_to_forget_and_how():
    gs = [{"name": "gs_lora"}]
    with pytest.raises(PlanError, match="names none to forget"):
        plan_of(defaults={"methods": gs}, stages=[{"recipe": "tiny/letter"}])
    with pytest.raises(PlanError, match="no method of the stage forgets rows"):
        plan_of(stages=[{"recipe": "tiny/letter", "forget": "tiny/word-forget"}])
    with pytest.raises(PlanError, match="needs carry:merge"):
        adapter = {"rank": 4, "alpha": 8, "carry": "keep"}
        plan_of(defaults={"methods": gs, "adapter": adapter}, stages=STAGES[:1])


def test_naming_it_alone_is_using_the_shipped_settings():
    """``{name: gs_lora}`` and ``{use: gs_lora}`` in a config are the same run."""
    assert GSLoRA.Config() == shipped_config(GSLoRA)
    assert refused(GSLoRA, beta=0.5, margin=0.5, per_step=1, alpha=0.5, alpha_epoch=0.5, omega=0.5, prune=0.5) == []
    for key, wrong in (("beta", -0.5), ("margin", -0.5), ("alpha", -0.5), ("alpha_epoch", -0.5), ("omega", -0.5)):
        assert refused(GSLoRA, **{key: wrong}) == [key]
    assert refused(GSLoRA, per_step=0) == ["per_step"]
    assert refused(GSLoRA, prune=0) == refused(GSLoRA, prune=1) == ["prune"]
    assert refused(GSLoRA, prototypes={"forget": 0.5, "retain": 0.5}) == []
    for key in ("forget", "retain"):
        assert refused(GSLoRA, prototypes={key: -0.5}) == [f"prototypes.{key}"]


def test_shipped_plus_plus_is_the_same_method_with_prototypes():
    settings = load_yaml(shipped("configs") / "methods" / "gs_lora_pp.yaml")
    assert settings.pop("name") == "gs_lora"
    config, problems = parse(GSLoRA.Config, settings)
    assert not problems and config.prototypes.forget > 0


# ---- whole stages ----------------------------------------------------------------------------------------------------
def trained(tmp_path, *methods, engine=None, stop_at=None, **changes):
    plan = plan_of(stages=changes.pop("stages", STAGES), defaults={"methods": list(methods), **changes})
    return plan, run_plan(plan, tmp_path, engine=engine, stop_at=stop_at)


EVERYTHING = {
    **PROX,
    "alpha": 60.0,
    "bound": "ignorance",
    "target": "blind",
    "prototypes": {"forget": 1.0, "retain": 0.5},
    "prune": 0.05,
}


@pytest.mark.parametrize("settings", [PROX, EVERYTHING, {"name": "gs_lora", "target": "refusal", "groups": "pair"}])
def test_other_settings_resume_and_shard_bitwise(tmp_path, settings):
    """The shipped settings are in the contract suite; exact zeros, bounds per row and prototypes must survive as well."""
    _, straight = trained(tmp_path / "a", settings)
    _, resumed = trained(tmp_path / "b", settings, stop_at=(2, 2))
    _, sharded = trained(tmp_path / "c", settings, engine=ShardedEngine)
    assert tensors_of(straight) == tensors_of(resumed) == tensors_of(sharded)


def test_factors_of_zero_equal_not_listed(tmp_path):
    """beta 0 and alpha 0: the same weights as a stage that forgets nothing."""
    _, off = trained(tmp_path / "off", {"name": "gs_lora", "beta": 0, "alpha": 0})
    _, without = trained(tmp_path / "without", stages=[{"recipe": s["recipe"]} for s in STAGES])
    _, on = trained(tmp_path / "on", {"name": "gs_lora"})

    def weights(result):
        return {s: {f: h for f, h in files.items() if "methods/" not in f} for s, files in tensors_of(result).items()}

    assert weights(off) == weights(without) != weights(on)


def test_zero_groups_are_reported_and_left_out_of_the_adapter(tmp_path):
    """One matrix in block 0 (norm about 1.2) and three in block 1 (about 2), thresholds that sum to 1.4: block 0 is in the
    note and not in the file, which merges to the same weights."""
    targets = ["layers.0.mlp.up_proj", *(f"layers.1.{n}" for n in ("mlp.up_proj", "mlp.gate_proj", "self_attn.q_proj"))]
    adapter = {"rank": 4, "alpha": 8, "also_train": [], "targets": targets}
    optim = {"batch": 8, "lr": 1e-3, "schedule": "constant", "warmup": 0}
    alpha = {**PROX, "alpha": 1.4 / 0.006}
    plan, result = trained(tmp_path, alpha, adapter=adapter, optim=optim, max_steps=6, stages=STAGES[1:])
    home = tmp_path / plan.stages[0].folder
    state = json.loads((home / "methods" / "gs_lora" / "state.json").read_text())["state"]
    assert state["zero"] == ["model.language_model.layers.0"] and len(state["norms"]) == 2
    assert state["norms"][state["zero"][0]] == [0, 0] and min(state["norms"]["model.language_model.layers.1"]) > 0
    file, note = read_adapter(home / "adapter"), json.loads((home / "adapter" / "mcit.json").read_text())
    assert note["zero"] == ["model.language_model.layers.0.mlp.up_proj"] and len(file.lora) == 3
    assert not set(note["zero"]) & set(file.lora)
    base = tiny_model_of(plan)
    adapters.merge(base, file)
    for name, value in result["model"].named_parameters():
        assert torch.equal(value, dict(base.named_parameters())[name]), name


def tiny_model_of(plan):
    from mcit.models.load import load_base

    return load_base(plan.model_path, dtype="fp32")


def test_stages_add_up_by_merging():
    """Oracle 13: a stage with change 0.5 I: merged, with a fresh adapter on top, the weight is W + 0.5 I and the live change is
    0; two stages add."""
    model = tiny_model()
    name = next(n for n in adapters_targets(model) if square(model, n))
    before = model.get_submodule(name).weight.detach().clone()
    eye = torch.eye(len(before))
    step = AdapterFile({name: LoraPair(eye, 0.5 * eye, 1.0)}, {}, {})
    for count in (1, 2):
        adapters.merge(model, step)
        adapters.add_lora(model, adapter_config(), seed=count)
        layer = model.get_submodule(name)
        before = before + 0.5 * eye
        assert torch.equal(layer.base_layer.weight, before)
        x = torch.randn(3, len(eye))
        assert torch.equal(layer(x), layer.base_layer(x))
        adapters.remove(model)


def adapters_targets(model):
    from mcit.models.units import lora_targets

    return lora_targets(model, "language-linear")


def square(model, name):
    o, i = model.get_submodule(name).weight.shape
    return o == i


def adapter_config():
    from mcit.core.schema import AdapterConfig

    return AdapterConfig(rank=2, alpha=4, also_train=[])


def test_what_the_authors_reduction_and_a_projector_mean_is_noted():
    """Their bound is on the mean of all tokens, so `spare` has no effect; they freeze all but LoRA."""
    plan = SimpleNamespace(config=SimpleNamespace(engine=SimpleNamespace(micro_batch=8)))
    given = stage()
    given.adapter.also_train = ["projector", "head"]
    notes = [p for p in method(reduction="authors").check(given, plan) if p.level == "note"]
    assert ["none is spared" in p.what for p in notes] == [True, False]
    assert notes[1].what.startswith("projector and head train too")
    given.adapter.also_train = []
    assert not [p for p in method(reduction="authors", spare="none").check(given, plan)]


def test_a_row_to_forget_has_one_answer():
    """Two answers: the first one's end marker would be pushed, for ends are those of the whole row."""
    (one,) = steps.rows("t", 1)
    one = dataclasses.replace(one, images=("p.png",))
    two = dataclasses.replace(one, turns=one.turns * 2)
    method().streams(SimpleNamespace(forget_rows=lambda: [one], seed=5))
    with pytest.raises(DataError, match="several answers") as error:
        method().streams(SimpleNamespace(forget_rows=lambda: [one, two], seed=5))
    assert error.value.where == two.where
    assert method(spare="none").streams(SimpleNamespace(forget_rows=lambda: [two], seed=5))
