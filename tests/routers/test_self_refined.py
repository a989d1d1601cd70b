"""Guess under the first adapter, read under the guessed ones, answer by both."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from mcit.core.errors import McitError
from mcit.core.files import read_json, sha256_file
from mcit.core.interfaces import Silent
from mcit.core.seeds import seed_for
from mcit.core.tensorfile import load_tensors
from mcit.data.folder import DataFolder
from mcit.evals.generator import greedy
from mcit.evals.pooled import PooledAnswerer
from mcit.routers.formulas.gaussians import aligned, nearest_mean_head
from mcit.routers.formulas.labelled import drawn as rows_drawn
from mcit.routers.self_refined import SelfRefined
from mcit.train.routing import pooled
from mcit.train.sequence import Session, run_sequence
from tests.fakes.method_plans import POOL, ROUTER
from tests.fakes.rows import row
from tests.train.test_routing import pool_plan
from tests.train.test_sequence import opened

K = 3
EYE = torch.eye(K)
MEMBERS = ["m0", "m1", "m2"]


def known(certain):
    """One class per member with its axis as prototype; the head's logits are `certain` times the feature."""
    by_class = {
        f"{kind}|{k:06d}": value[k] for kind, value in (("prototype", EYE), ("moved", 0 * EYE)) for k in range(K)
    }
    head = {"weight": certain * EYE, "bias": torch.zeros(K), "shift": torch.zeros(K), "scale": torch.ones(K)}
    return by_class | {f"head|{name}": value for name, value in head.items()}


def routed(guess, jumps, *, reads=4, ensemble=False, first=EYE):
    """The member chosen for one row, and the members that read it. Features are one-hot: class `guess` at first, then
    `jumps[m]` under member m. Member 0 reads nothing anew, for the first guess was made under it."""
    calls = []

    def states(rows, member):
        calls.append(member)
        number = MEMBERS.index(member)
        return (first[guess] if number == 0 else EYE[jumps[number]]).expand(len(rows), K)

    tensors = known(9)
    state = {"classes": [[m, ""] for m in MEMBERS], "reads": reads, "ensemble": ensemble}
    (chosen,) = SelfRefined.route([{"id": "r"}], MEMBERS, state, tensors, states)
    return chosen, calls


def test_settings_and_their_bounds():
    defaults = {
        "classes": "stage", "most": 64, "rows": 1000, "covariance": "full", "recentre": True, "reads": 4, "ensemble": True,
        "align_epochs": 30, "align_lr": 0.005, "samples": 240,
    }  # fmt: skip
    assert SelfRefined.Config().model_dump() == defaults
    edges = {"most": 1, "rows": 2, "reads": 1, "align_epochs": 0, "align_lr": 0.0, "samples": 1}
    assert SelfRefined.Config(**edges).model_dump() == defaults | edges
    for key, value in edges.items():
        with pytest.raises(ValidationError):
            SelfRefined.Config(**{key: value - 1})


def test_a_loop_that_settles_stops_there():
    """The guess is 2, which says 1, which says 1: two reads. (The numbers of the card shifted by one.)"""
    assert routed(2, {2: 1, 1: 1}) == ("m1", ["m0", "m2", "m1"])
    assert routed(2, {2: 2}) == ("m2", ["m0", "m2"])


@pytest.mark.parametrize(("x_D", "guessed"), [((3.2, 1.0), []), ((3.5, 1.4), ["m1"])])
def test_the_guess_compares_directions_from_the_middle_of_the_prototypes(x_D, guessed):
    """Prototypes (2, 0) and (4, 3), their middle (3, 1.5): the rows are (.2, -.5) and (.5, -.1) from there."""
    calls = []

    def states(rows, member):
        calls.append(member)
        return torch.tensor([x_D])

    head = {"weight": torch.eye(2), "bias": torch.zeros(2), "shift": torch.zeros(2), "scale": torch.ones(2)}
    tensors = {f"head|{name}": value for name, value in head.items()} | {
        "prototype|000000": torch.tensor([2.0, 0.0]),
        "prototype|000001": torch.tensor([4.0, 3.0]),
        "moved|000000": torch.zeros(2),
        "moved|000001": torch.zeros(2),
    }
    state = {"classes": [["m0", ""], ["m1", ""]], "reads": 1, "ensemble": False}
    SelfRefined.route([{"id": "r"}], ["m0", "m1"], state, tensors, states)
    assert calls == ["m0", *guessed]


def test_a_read_uses_weight_shift_scale_and_bias_of_the_head():
    """Feature (0, 0, 1) less the move (0, 0, .25) and the shift (0, 0, .5), over the scale (1, 1, .125): logits (0, 0, 2)."""
    head = {"head|shift": torch.tensor([0, 0, 0.5]), "head|scale": torch.tensor([1, 1, 0.125])}
    head["moved|000002"] = torch.tensor([0, 0, 0.25])
    state = {"classes": [[m, ""] for m in MEMBERS], "reads": 1, "ensemble": False}

    def chosen(bias):
        tensors = known(1) | head | {"head|bias": torch.tensor(bias)}
        return SelfRefined.route([{"id": "r"}], MEMBERS, state, tensors, lambda rows, member: EYE[[2]])

    assert (
        chosen([0.0, 3.0, 0.0]) == ["m1"] and chosen([0.0, 1.5, 0.0]) == ["m2"] and chosen([0.0, -3.0, 0.0]) == ["m2"]
    )


@pytest.mark.parametrize(("reads", "chosen"), [(1, "m2"), (2, "m1"), (3, "m2"), (4, "m1"), (5, "m2")])
def test_a_loop_that_does_not_settle_stops_after_so_many_reads(reads, chosen):
    """1 says 2 and 2 says 1; a row is not passed through an adapter twice."""
    assert routed(1, {1: 2, 2: 1}, reads=reads)[0] == chosen
    assert routed(1, {1: 2, 2: 1}, reads=reads)[1] == ["m0", "m1", "m2"][: 1 + min(reads, 2)]


def test_the_ensemble_weighs_the_first_guess_by_the_number_of_adapters():
    """Refined logits 9 for class 1 are certain; cosines are within [-1, 1], times 3 adapters: the refined class wins. With
    equal refined logits the guess decides."""
    assert routed(2, {2: 1, 1: 1}, ensemble=True)[0] == "m1"
    state = {"classes": [[m, ""] for m in MEMBERS], "reads": 4, "ensemble": True}
    tensors = known(0.01)

    def states(rows, member):
        return EYE[{"m0": 2, "m1": 1, "m2": 1}[member]].expand(len(rows), K)

    assert SelfRefined.route([{"id": "r"}], MEMBERS, state, tensors, states) == ["m2"]
    assert SelfRefined.route([{"id": "r"}], MEMBERS, {**state, "ensemble": False}, tensors, states) == ["m1"]
    # logit 2: .79 + .01 for class 1, .11 + .98 for class 2; by cosines alone, not 3 times them, .79 + .15 and .11 + .69
    assert SelfRefined.route([{"id": "r"}], MEMBERS, state, known(2), states) == ["m2"]


def test_rows_are_read_together_and_alone_alike():
    tensors = known(9)
    state = {"classes": [[m, ""] for m in MEMBERS], "reads": 4, "ensemble": True}
    jumps = {"a": (0, 0, 0), "b": (1, 2, 1), "c": (2, 0, 2), "d": (0, 1, 1)}
    calls = []

    def states(rows, member):
        calls.append((member, [r["id"] for r in rows]))
        return torch.stack([EYE[jumps[r["id"]][MEMBERS.index(member)]] for r in rows])

    rows = [{"id": name} for name in jumps]
    together = SelfRefined.route(rows, MEMBERS, state, tensors, states)
    assert together == [SelfRefined.route([r], MEMBERS, state, tensors, states)[0] for r in rows]
    assert calls[0] == ("m0", ["a", "b", "c", "d"]) and calls[1] == ("m1", ["b"])


@pytest.fixture(scope="module")
def done(tmp_path_factory, cache):
    """Three stages with mos; `classes: answer`, `diagonal` for the smallest path beside the contract suite's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        stages = [{"recipe": f"tiny/{name}"} for name in ("letter", "yesno", "word")]
        defaults = {"adapter": POOL, "max_steps": 3, "methods": [{"name": "mos"}]}
        router = {**ROUTER, "rows": 12}
        plan = pool_plan(router, stages, eval={"tasks": "seen", "rows": 2, "batch": 4}, defaults=defaults)
        run = opened(plan, tmp_path_factory.mktemp("runs"))
        with run.locked():
            run_sequence(plan, run, reporter=Silent())
    return plan, run


def rows_of(plan, count):
    return [r for task in plan.tasks for r in DataFolder.open(task.folder).rows("test")[:count]]


def test_statistics_are_of_the_states_that_routing_sees(done):
    """The mean of a stage's rows under its own adapter and under the first, from training passes and from prompts."""
    plan, run = done
    session = Session(plan, run, Silent())
    tensors = load_tensors(run.stage("03-word") / "router" / "tensors.safetensors")
    state = read_json(run.stage("03-word") / "router" / "state.json")["state"]
    assert state["classes"] == [["01-letter", ""], ["02-yesno", ""], ["03-word", ""]]
    with pooled(plan, session.model_after(3), session.encoder, session.lineage(3)) as pool:
        for k, stage in enumerate(plan.stages):
            drawn = rows_drawn(DataFolder.open(stage.tasks[0].folder).rows("train"), 12, stage.seed)
            own, first = (pool._states(drawn, member).mean(0) for member in (stage.folder, "01-letter"))
            assert torch.allclose(tensors[f"mean|{k:06d}"] + tensors[f"moved|{k:06d}"], own, atol=1e-4), k
            assert torch.allclose(tensors[f"prototype|{k:06d}"], first, atol=1e-4), k
        assert float(tensors["moved|000002"].norm()) > 0.1 and not tensors["moved|000000"].any()


def test_a_row_read_under_another_stages_adapter_can_be_known(done):
    """Under the adapters of stages 2 and 3 the rows of stage 1 are closest to it only where the adapter's move is taken out."""
    plan, run = done
    session = Session(plan, run, Silent())
    t = load_tensors(run.stage("03-word") / "router" / "tensors.safetensors")
    prototypes, moved = (torch.stack([t[f"{kind}|{k:06d}"] for k in range(3)]) for kind in ("prototype", "moved"))
    assert torch.allclose(torch.stack([t[f"mean|{k:06d}"] for k in range(3)]), prototypes, atol=1e-4)
    given = DataFolder.open(plan.tasks[0].folder).rows("test")[:8]
    right = {}
    with pooled(plan, session.model_after(3), session.encoder, session.lineage(3)) as pool:
        for k, member in ((1, "02-yesno"), (2, "03-word")):
            x_ND = pool._states(given, member)
            raw = torch.cdist(x_ND, prototypes + moved).argmin(1)
            right[member] = (
                int((raw == 0).sum()),
                int((torch.cdist(x_ND - moved[k], prototypes).argmin(1) == 0).sum()),
            )
    assert all(raw == 0 for raw, _ in right.values()) and sum(own for _, own in right.values()) >= 8, right


def test_evaluating_twice_gives_the_same_weights_and_answers(done):
    """The released code changes stored adapters in every batch it evaluates."""
    plan, run = done
    session = Session(plan, run, Silent())
    given = rows_of(plan, 3)

    def weights():
        return {str(p): sha256_file(p) for p in sorted((run.layout.root / "stages").rglob("*.safetensors"))}

    before, found = weights(), []
    with (
        pooled(plan, session.model_after(3), session.encoder, session.lineage(3)) as pool,
        greedy(pool._model, session.encoder, max_new_tokens=4) as generator,
    ):
        live = {n: p.detach().clone() for n, p in pool._model.named_parameters()}
        for _ in range(2):
            found.append(PooledAnswerer(generator, pool).answer(given, device="cpu"))
        assert all(torch.equal(live[n], p) for n, p in pool._model.named_parameters())
    assert found[0] == found[1] and weights() == before


def test_state_comes_back(done):
    _, run = done
    state = read_json(run.stage("03-word") / "router" / "state.json")["state"]
    again = SelfRefined(SelfRefined.Config(**{k: v for k, v in ROUTER.items() if k in ("rows", "samples")}))
    again.load_state_dict(state)
    assert [list(c) for c in again.state_dict()["classes"]] == state["classes"]


def test_a_class_per_answer_and_diagonal_covariance():
    """Learning by hand: two answers in a stage are two classes of one member."""
    router = SelfRefined(SelfRefined.Config(classes="answer", covariance="diagonal", align_epochs=0))
    hidden = {"a": 0.0, "b": 5.0}
    given = [row("q", "ab"[k % 2], id=str(k)) for k in range(6)]

    def forward_pass(rows):
        for r in rows:
            answer = torch.tensor([[False, False, True, True]])
            state = torch.full((1, 4, 2), 99.0)
            state[0, 1] = hidden[r.answer] + 0.1 * int(r.id)
            yield SimpleNamespace(answer_BT=answer), SimpleNamespace(hidden={"last": state})

    ctx = SimpleNamespace(data=SimpleNamespace(stage_rows=lambda: given), seed=1, forward_pass=forward_pass)
    router.learn("01", ctx)
    assert not router.tensors.require("moved", "000000").any(), "the first adapter moves nothing"
    assert router.state_dict()["classes"] == [("01", "a"), ("01", "b")]
    assert router.tensors.require("mean", "000001").tolist() == pytest.approx([5.3, 5.3])
    assert router.tensors.require("covariance", "000000").shape == (2,)


def test_the_head_is_aligned_from_the_second_class_on():
    router = SelfRefined(SelfRefined.Config(align_epochs=2, samples=4, align_lr=0.5))
    x_ND = torch.tensor([[0.0, 1.0], [2.0, 1.5], [1.0, -1.0]])

    def learn(member, add):
        def forward_pass(rows):
            answer = torch.tensor([[False, True]] * 3)
            yield (
                SimpleNamespace(answer_BT=answer),
                SimpleNamespace(hidden={"last": (x_ND + add)[:, None].repeat(1, 2, 1)}),
            )

        given = [row("q", "a", id=str(k)) for k in range(3)]
        ctx = SimpleNamespace(data=SimpleNamespace(stage_rows=lambda: given), seed=1, forward_pass=forward_pass)
        router.learn(member, SimpleNamespace(**vars(ctx), as_member=lambda member: nullcontext()))
        known = [
            (router.tensors.require("mean", n), router.tensors.require("covariance", n))
            for n in router.tensors.names("mean")
        ]
        spread_KD = torch.stack([c.diagonal() for _, c in known])
        return known, nearest_mean_head(torch.stack([m for m, _ in known]), spread_KD)

    _, plain = learn("01", 0.0)
    assert all(torch.equal(router.tensors.require("head", name), value) for name, value in plain.items())
    known, plain = learn("02", 3.0)
    generator = torch.Generator().manual_seed(seed_for(1, "self_refined"))
    made = aligned(plain, known, generator, epochs=2, count=4, lr=0.5)
    assert all(torch.equal(router.tensors.require("head", name), value) for name, value in made.items())
    assert not torch.equal(made["weight"], plain["weight"])


def test_adapters_that_do_not_fit_are_refused_before_weights_load():
    stages = [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno", "adapter": {**POOL, "rank": 8}}]
    with pytest.raises(McitError, match="reads rows under earlier adapters"):
        pool_plan(ROUTER, stages)
    with pytest.raises(McitError, match="hft.*freezes parts of the adapter"):
        pool_plan(ROUTER, defaults={"adapter": POOL, "methods": [{"name": "hft"}]})
