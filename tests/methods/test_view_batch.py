from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mcit.core.types import Row, Turn
from mcit.methods.formulas.divergence import distillation_kl
from mcit.methods.view_batch import ViewBatch
from tests.fakes.settings import refused, shipped_config
from tests.fakes.steps import batch, context, output


def method(**settings):
    return ViewBatch(ViewBatch.Config(**settings))


def row(text="What is it?", name="r"):
    return Row(name, ("a.png",), (Turn("user", f"<image>\n{text}"), Turn("assistant", "a cat")), "t", "t.json:1")


@pytest.mark.parametrize("count", [200, 10, 7])
def test_every_row_comes_v_times_in_each_block_of_v_epochs_always_adjacent(count):
    """Also with 200 rows, of which the released code reads none."""
    made = [method(views=4).order("task", epoch, count, 5) for epoch in range(8)]
    assert [len(epoch) for epoch in made] == [count] * 8
    for block in (made[:4], made[4:]):
        draws = [draw for epoch in block for draw in epoch]
        assert Counter(r for r, _ in draws) == dict.fromkeys(range(count), 4)
        assert all(draws[k : k + 4] == [(draws[k][0], v) for v in range(4)] for k in range(0, 4 * count, 4))
    assert [r for e in made[:4] for r, _ in e] != [r for e in made[4:] for r, _ in e]


@pytest.mark.parametrize(("count", "released"), [(50_000, 49_920), (200, 0)])
def test_no_row_is_left_out(count, released):
    """The released code reads whole multiples of 256 rows per epoch: 49,920 of 50,000, none of 200."""
    assert count // 256 * 256 == released
    assert {r for epoch in range(4) for r, _ in method(views=4).order("task", epoch, count, 1)} == set(range(count))


def test_recall_interval_by_hand():
    """32 rows a step, 312 steps an epoch: 9,984 samples between visits; with 4 views 39,936 from block to block."""
    n = 32 * 312
    draws = [r for epoch in range(8) for r, _ in method(views=4).order("task", epoch, n, 1)]
    first = {r: k for k, r in reversed(list(enumerate(draws)))}
    second = {r: k for k, r in reversed(list(enumerate(draws))) if k >= 4 * n}
    gaps = [second[r] - first[r] for r in first]
    assert sum(gaps) / len(gaps) == pytest.approx(39_936)


def test_the_order_follows_the_seed():
    assert method().order("task", 0, 50, 1) == method().order("task", 0, 50, 1) != method().order("task", 0, 50, 2)


def test_a_view_is_one_change_of_the_picture_by_seed_row_and_view():
    one = method().on_row(row(), 1, 5)
    assert one == method().on_row(row(), 1, 5) and one.turns == row().turns
    assert [c.kind in ("brightness", "contrast") for c in one.encoding.changes] == [True]
    views = {method().on_row(row(), v, s).encoding.changes for v in (1, 2, 3) for s in (5, 6)}
    assert len(views) == 6
    text_only = replace(row(), images=())
    assert method().on_row(text_only, 1, 5) == text_only


@pytest.mark.parametrize(
    ("change", "spares"),
    [("flip", "the LEFT"), ("crop", "the right"), ("grey", "a red mat"), ("colour", "a mat of this colour")],
)
def test_changes_spare_rows_whose_words_they_would_falsify(change, spares):
    """Left and right keep a flip and a crop away, colours a change of colour; each change takes the other row."""
    both = {text: method(changes=[change]).on_row(row(f"Is it on {text}?"), 1, 5) for text in ("the left", "a red mat")}
    assert method(changes=[change]).on_row(row(f"Is it on {spares}?"), 1, 5).encoding.changes == ()
    assert method(changes=[change]).on_row(row(), 1, 5).encoding.changes[0].kind == change
    assert sorted(len(made.encoding.changes) for made in both.values()) == [0, 1]


@pytest.mark.parametrize(
    ("task", "changes", "wrong"),
    [
        (dict(name="textvqa", scorer="vqa", style="word"), ["flip", "contrast"], "flip"),
        (dict(name="ref", scorer="grounding", style="box"), ["crop", "rotate"], "crop, rotate"),
        (dict(name="plates", scorer="word", style="word"), ["flip"], None),
        (dict(name="animals", scorer="choice", style="phrase"), ["flip", "crop"], None),
    ],
)
def test_changes_that_falsify_answers_are_refused(task, changes, wrong):
    stage = SimpleNamespace(epochs=4, tasks=[SimpleNamespace(**task)], rows=0, steps=1, optim=TWO.optim)
    reading = ["plates"] if task["name"] == "plates" else []
    problems = method(changes=changes, reading=reading).check(stage, None)
    if task["name"] == "plates":
        assert "flip falsifies answers of task 'plates' (reading)" in problems[0].what
    elif wrong is None:
        assert problems == []
    else:
        assert problems[0].what.startswith(wrong) and problems[0].fix


def test_each_task_of_a_stage_has_its_own_changes():
    """A task that is not named has those of all; an empty list leaves its pictures alone."""
    made = method(task_changes={"animals": ["flip"], "plates": []})

    def kinds(task):
        shown = [made.on_row(replace(row(), task=task), view, 5) for view in range(1, 9)]
        return {change.kind for one in shown for change in one.encoding.changes}

    assert kinds("animals") == {"flip"} and kinds("plates") == set() and kinds("other") == {"brightness", "contrast"}


TWO = SimpleNamespace(
    epochs=4,
    rows=0,
    steps=1,
    optim=SimpleNamespace(batch=8),
    tasks=[
        SimpleNamespace(name="animals", scorer="choice", style="phrase"),
        SimpleNamespace(name="textvqa", scorer="vqa", style="word"),
    ],
)


def test_what_falsifies_is_told_task_by_task():
    """A flip of pictures of animals stands beside a task that is read; named for that task it is refused there."""
    assert method(task_changes={"animals": ["flip"]}).check(TWO, None) == []
    assert method(changes=["flip"], task_changes={"textvqa": ["contrast"]}).check(TWO, None) == []
    (problem,) = method(task_changes={"textvqa": ["flip", "contrast"]}).check(TWO, None)
    assert problem.where == "task_changes.textvqa" and problem.fix == "leave flip out of task_changes.textvqa"
    assert problem.what == "flip falsifies answers of task 'textvqa' (reading)"
    (problem,) = method(changes=["flip"]).check(TWO, None)
    assert problem.where == "changes" and "task_changes: {textvqa: […]}" in problem.fix


def test_a_task_that_the_stage_does_not_have_is_refused():
    (problem,) = method(task_changes={"animal": ["flip"]}).check(TWO, None)
    assert problem.where == "task_changes.animal" and problem.fix == "did you mean 'animals'?"


def test_fewer_epochs_than_views_are_refused():
    stage = SimpleNamespace(epochs=3, tasks=[], rows=16, steps=6, optim=SimpleNamespace(batch=8))
    (problem,) = method().check(stage, None)
    assert "4 epochs; the stage has 3" in problem.what
    assert method(views=3).check(stage, None) == []


def test_rows_that_never_come_are_noted():
    """16 rows in 4 views take 8 steps of 8; 3 steps hold 6 of them."""
    stage = SimpleNamespace(epochs=4, tasks=[], rows=16, steps=3, optim=SimpleNamespace(batch=8))
    (problem,) = method().check(stage, None)
    assert problem.level == "note" and "about 6 of 16 rows come in 3 steps" in problem.what
    stage.steps = 8
    assert method().check(stage, None) == []


def four_views(logits, ids=("a", "a", "b", "b"), views=(0, 1, 0, 1)):
    """Rows with one answer token each."""
    out = replace(output(torch.tensor(logits), [0] * len(ids)), row_N=torch.arange(len(ids)))
    rows = tuple(row(name=i) for i in ids)
    return out, replace(batch(tokens=len(ids)), rows=rows, views=views)


def ctx(step=0):
    c = context()
    c.step = step
    c.stage = SimpleNamespace(optim=SimpleNamespace(batch=4), rows=8, index=1)
    return c


def test_divergence_by_hand():
    """KL(softmax(1, 0) || softmax(0, 1)) = 0.462117 for row a, 0 for row b; V / (V - 1) = 2 of the sum, which the loop divides
    by all 4 tokens: the mean over the 2 taught ones."""
    out, given = four_views([[1.0, 0], [0, 1], [3, 1], [3, 1]])
    term = method(views=2).loss_term(out, given, ctx())
    assert term.per == "tokens" and term.sum.item() == pytest.approx(2 * 0.462117, abs=1e-5)


def test_the_released_code_also_divides_by_the_classes():
    """Its mean over a row of two classes is 0.231059, half of the divergence."""
    teacher, student = torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]])
    released = torch.nn.functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").mean().item()
    assert released == pytest.approx(0.231059, abs=1e-6)
    assert distillation_kl(student, teacher).item() == pytest.approx(2 * released)


def test_the_first_view_is_a_teacher_without_gradient():
    logits = torch.tensor([[1.0, 0], [0, 1]], requires_grad=True)
    out = replace(output(logits.detach(), [0, 0]), logits_NV=logits, row_N=torch.arange(2))
    given = replace(batch(), rows=(row(name="a"), row(name="a")), views=(0, 1))
    method(views=2).loss_term(out, given, ctx()).sum.backward()
    assert logits.grad[0].abs().max() == 0 and logits.grad[1].abs().max() > 0


def test_two_rows_with_the_same_answer_are_two_groups():
    """Two rows of one class, 4 views each: 3 + 3 taught views, none across rows."""
    logits = [[1.0, 0]] * 4 + [[0.0, 1]] * 4
    out, given = four_views(logits, ids=("a",) * 4 + ("b",) * 4, views=(0, 1, 2, 3) * 2)
    assert method().loss_term(out, given, ctx()).sum.item() == pytest.approx(0, abs=1e-7)
    assert distillation_kl(torch.tensor([[0.0, 1]]), torch.tensor([[1.0, 0]])).item() > 0.4


def test_epochs_without_divergence_and_factor_zero():
    out, given = four_views([[1.0, 0], [0, 1], [3, 1], [3, 1]])
    late = method(views=2, from_epoch=1)
    assert late.loss_term(out, given, ctx(1)) is None and late.loss_term(out, given, ctx(2)) is not None
    assert method(divergence=0).loss_term(out, given, ctx()) is None


def test_settings():
    assert ViewBatch.Config() == shipped_config(ViewBatch)
    assert refused(ViewBatch, views=1) == ["views"] and refused(ViewBatch, changes=["swirl"]) == ["changes[0]"]
    assert refused(ViewBatch, task_changes={"t": ["flip", "swirl"]}) == ["task_changes.t[1]"]
