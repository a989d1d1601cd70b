"""Stability metrics against series worked by hand."""

import pytest

from mcit.evals import stability
from mcit.evals.stability import Evaluation, gaps, lca, min_acc, stability_metrics, wc_acc, wf, windowed_rise, wp
from mcit.evals.stability import windowed_fall as fall

FIRST = [0.9, 0.5, 0.7, 0.8, 0.6]
SECOND = [0.2, 0.6, 0.55, 0.7, 0.9]


def run(first=FIRST, now=0.85):
    """Task a ends after step 1 of stage 1; then b trains, and a is measured as in `first`, b as `now` every time."""
    own = [Evaluation(1, 1, frozenset("a"), {"a": first[0]})]
    return own + [Evaluation(1 + k, 2, frozenset("b"), {"a": v, "b": now}) for k, v in enumerate(first[1:], 1)]


def test_the_worked_series():
    assert min_acc(run()) == 0.5
    assert wc_acc(run()) == pytest.approx(0.675)
    assert [fall(FIRST, w) for w in (2, 3)] == pytest.approx([0.4, 0.4])
    assert [windowed_rise(FIRST, w) for w in (2, 3)] == pytest.approx([0.2, 0.3])
    assert (fall(SECOND, 3), windowed_rise(SECOND, 3)) == pytest.approx((0.05, 0.4))
    both = [
        Evaluation(k, 1, frozenset("ab"), {"a": a, "b": b}) for k, (a, b) in enumerate(zip(FIRST, SECOND, strict=True))
    ]
    assert wf(both, 3) == pytest.approx(0.225) and wp(both, 3) == pytest.approx(0.35)


def test_series_without_a_gap():
    constant = [0.4] * 5
    assert (fall(constant, 3), windowed_rise(constant, 3)) == (0, 0)
    rise = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert fall(rise, 5) == 0 and [windowed_rise(rise, w) for w in (3, 5)] == pytest.approx([0.2, 0.4])
    assert (fall(FIRST, 1), windowed_rise(FIRST, 1), fall([], 3), windowed_rise([], 3)) == (0, 0, 0, 0)


def test_the_released_code_starts_a_rise_at_running_maxima_only():
    assert windowed_rise(FIRST, 5, authors_compat=True) == 0 and windowed_rise(FIRST, 5) == pytest.approx(0.3)
    series = [0.5, 0.2, 0.9]
    assert windowed_rise(series, 3, authors_compat=True) == pytest.approx(0.4) and windowed_rise(
        series, 3
    ) == pytest.approx(0.7)
    one = [Evaluation(k, 1, frozenset("a"), {"a": v}) for k, v in enumerate(series)]
    assert wp(one, 3, authors_compat=True) == pytest.approx(0.4)


def test_with_one_task_there_is_no_minimum():
    alone = [Evaluation(k, 1, frozenset("a"), {"a": v}) for k, v in enumerate(FIRST)]
    assert min_acc(alone) is None and wc_acc(alone) == 0.6 and stability.forg(alone) is None
    assert min_acc([]) is None and wc_acc([]) is None and stability.acc([]) is None and gaps([]) == []


def test_the_minimum_is_of_later_stages_that_do_not_train_the_task():
    """Before the first update of stage 2 the weights are those at the end of stage 1; a comes back in stage 3."""
    series = [
        Evaluation(0, 1, frozenset("a"), {"a": 0.0}),
        Evaluation(5, 1, frozenset("a"), {"a": 0.9}),
        Evaluation(5, 2, frozenset("b"), {"a": 0.9, "b": 0.1}),
    ]
    assert min_acc(series) is None and wc_acc(series) is None
    series += [
        Evaluation(6, 2, frozenset("b"), {"a": 0.4, "b": 0.5}),
        Evaluation(7, 2, frozenset("b"), {"a": 0.6, "b": 0.7}),
    ]
    assert (min_acc(series), wc_acc(series)) == (0.4, pytest.approx(0.55))
    again = [
        *series,
        Evaluation(7, 3, frozenset("a"), {"a": 0.6, "b": 0.7}),
        Evaluation(8, 3, frozenset("a"), {"a": 0.2, "b": 0.6}),
    ]
    assert stability.lowest(again) == {"b": 0.6} and wc_acc(again) == pytest.approx(0.4)
    assert gaps(series) == [
        {"stage": 2, "task": "a", "start": 0.9, "lowest": 0.4, "end": 0.6, "step": 1,
         "drop": pytest.approx(0.5), "recovery": pytest.approx(0.2)},
    ]  # fmt: skip


def test_the_worst_case_is_a_lower_bound():
    for now in (0.0, 0.5, 1.0):
        assert wc_acc(run(now=now)) <= stability.acc(run(now=now))


def test_learning_curve_and_all_of_them():
    series = run()
    assert lca(series, first=2) == pytest.approx((0.9 + 0.85) / 2)
    found = stability_metrics(series)
    assert found["wf"]["10"] == pytest.approx(0.4 / 2) and found["wp"]["10"] == pytest.approx(0.3 / 2)
    assert found["acc"] == pytest.approx((0.6 + 0.85) / 2) and found["forg"] == pytest.approx(0.3)


def test_standard_error_of_a_share():
    assert stability.standard_error(0.8, 1000) == pytest.approx(0.0126, abs=1e-4)
    assert stability.standard_error(0.8, 100) == pytest.approx(0.04)
