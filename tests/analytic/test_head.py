import random

import pytest
import torch

from mcit.analytic.head import RowHead, prompt_states, row_key, unit_features
from mcit.core.errors import StateError
from mcit.core.types import Batch
from mcit.data.collate import collate
from mcit.data.folder import DataFolder
from mcit.engine.forward import run_model
from mcit.plan.plan import make_plan, read_config
from mcit.plan.preflight import make_encoder
from mcit.train.basemodel import load_run_base
from tests.fakes.rows import row


@pytest.fixture
def head():
    torch.manual_seed(0)
    made, x = RowHead(gamma=0.1, bits=10), torch.randn(9, 6)
    made.learn("a", x[:3], ["a0", "a1", "a2"])
    made.learn("b", x[3:6], ["b0", "b1", "b2"])
    return made, x


def test_rows_are_learned_once_and_forgotten_to_the_bit(head):
    made, x = head
    before = made.weight()
    made.learn("a", x[:1], ["a0"])
    assert torch.equal(made.weight(), before)
    made.learn("b", x[6:8], ["b3", "b4"])
    assert made.forget(x[6:8], ["b3", "b4"], ["w"] * 2) == 2
    assert torch.equal(made.weight(), before) and made.holds("b3") == [] and made.holds("a1") == ["a"]
    assert made.forget(x[8:], ["nobody"], ["w"]) == 0


def test_a_row_with_other_features_now_is_refused_by_name(head):
    made, x = head
    before = made.weight()
    with pytest.raises(StateError, match="f:1:r.*other features"):
        made.forget(x[1:2] + 0.1, ["a1"], ["f:1:r"])
    assert torch.equal(made.weight(), before) and made.holds("a1")


def test_state_and_tensors_are_the_head(head):
    made, x = head
    tensors = made.tensors()
    again = RowHead.load(made.state(), tensors["gram"], tensors["cross"])
    again.forget(x[:3], ["a0", "a1", "a2"], ["w"] * 3)
    made.forget(x[:3], ["a0", "a1", "a2"], ["w"] * 3)
    assert torch.equal(again.weight(), made.weight()) and made.weight()[:, 0].abs().sum() == 0
    assert RowHead.load(RowHead(gamma=1.0, bits=3).state(), None, None).tensors() == {}


def test_features_and_where_they_are_read():
    unit = unit_features(torch.tensor([[3.0, 4.0]]))
    assert torch.allclose(unit[:, :2].square().mean(), torch.tensor(1.0).double()) and unit[0, 2] == 1.0
    labels = torch.tensor([[-100, -100, 7, -100, -100, 8, 9], [-100, 5, -100, -100, -100, -100, -100]])
    attention = torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    batch = Batch("s", (row("q", "a"),) * 2, labels, labels, attention, {}, 4)
    hidden = torch.arange(14.0).reshape(2, 7, 1)
    assert prompt_states(hidden, batch).flatten().tolist() == [4.0, 7.0]
    assert prompt_states(hidden, batch, mean=True).flatten().tolist() == [2.0, 7.0]


def test_a_rows_key_is_what_it_shows_and_says():
    assert row_key(row("q", "a", id="1")) == row_key(row(" q ", "a", id="2")) != row_key(row("q", "b", id="1"))


@pytest.mark.embedded
def test_a_thousand_requests_on_features_of_the_embedded_model_end_at_the_refit():
    """240 rows of three demo tasks, learned and forgotten one by one in a random order: exactly the head of the rows left."""
    plan = make_plan(read_config("demo")[0])
    model, encoder, found = load_run_base(plan, device=torch.device("cpu")).eval(), make_encoder(plan), []
    for stage in plan.stages[:3]:
        rows = [DataFolder.open(stage.tasks[0].folder).rows("train")[k] for k in range(80)]
        for k in range(0, 80, 8):
            batch = collate([encoder.encode(row) for row in rows[k : k + 8]], stream="t", pad_id=encoder.pad_id)
            with torch.no_grad():
                out = run_model(model, batch, device=torch.device("cpu"), layers={"last"})
            states = prompt_states(out.hidden["last"], batch)
            found += [(stage.name, states[[i]], f"{stage.name}-{k + i}") for i in range(8)]
    rng, inside, outside = random.Random(0), [], list(range(len(found)))
    head, again = RowHead(gamma=0.1, bits=10), RowHead(gamma=0.1, bits=10)
    for _ in range(1000):
        learning = len(inside) < 5 or (outside and rng.random() < 0.55)
        place = (outside if learning else inside).pop(rng.randrange(len(outside if learning else inside)))
        label, x_1D, key = found[place]
        if learning:
            head.learn(label, x_1D, [key])
        else:
            assert head.forget(x_1D, [key], [key]) == 1
        (inside if learning else outside).append(place)
    for label in head.classes:  # columns in the same order
        mine = [found[k] for k in sorted(inside) if found[k][0] == label]
        again.learn(label, torch.cat([x_1D for _, x_1D, _ in mine]), [key for _, _, key in mine])
    assert len(inside) > 20 and float((head.weight() - again.weight()).abs().max()) == 0.0
