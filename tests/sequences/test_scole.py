"""Streams of re-occurring concepts."""

from collections import Counter

import pytest

from mcit.core.errors import ConfigError, PlanError
from mcit.core.paths import shipped
from mcit.sequences.scole import SCoLe, rarest, shares

TEN = [f"c{k}" for k in range(10)]


def made(seed=1, **settings):
    return SCoLe(SCoLe.Config(**{"concepts": TEN, "stages": 300, **settings})).stages(seed)


def counts(stages):
    return Counter(c for stage in stages for c in stage["recipe"])


def test_shares_by_hand():
    """Ten concepts, exponent 2: 1 / 6.2125 = .160966 and .55^2 / 6.2125 = .048692; their ratio 3.305785. Exponent 0: all .1."""
    p = shares(10, 2, 0.05)
    assert p[0] == pytest.approx(0.160966, abs=1e-6) and p[9] == pytest.approx(0.048692, abs=1e-6)
    assert p[0] / p[9] == pytest.approx(3.305785, abs=1e-6) and sum(p) == pytest.approx(1)
    assert shares(10, 0, 0.05) == pytest.approx([0.1] * 10)


def test_a_slope_that_makes_shares_negative_is_refused():
    with pytest.raises(ConfigError, match="nothing for the last of 25 concepts"):
        shares(25, 2, 0.05)
    assert len(shares(25, 0, 0.05)) == 25 and len(shares(25, 2, 0.01)) == 25


def test_stages_hold_different_concepts_and_follow_the_seed():
    stages = made()
    assert len(stages) == 300 and all(len(set(stage["recipe"])) == 2 for stage in stages)
    assert stages[0]["name"] == "visit-0001" and made() == stages and made(2) != stages
    assert made(per_stage=1)[0]["recipe"] in TEN
    with pytest.raises(ConfigError, match="11 different concepts of 10"):
        made(per_stage=11)


def test_imbalance_and_reduction_change_how_often_concepts_come():
    even, steep = counts(made(stages=2000)), counts(made(stages=2000, imbalance=3))
    assert max(even.values()) / min(even.values()) < 1.3
    assert max(steep.values()) / min(steep.values()) > 2.5
    levelled = counts(made(stages=2000, imbalance=3, reduction=1.05))
    assert max(levelled.values()) / min(levelled.values()) < 1.2


@pytest.mark.parametrize(
    ("visits", "stages", "eligible"),
    [(10, 100, True), (11, 100, False), (3, 300, False), (4, 300, True), (2, 100, False)],
)
def test_who_is_replayed_by_hand(visits, stages, eligible):
    """A tenth of the stages is rare enough, 11 % is not; 1 % is too rare, and two visits are too few."""
    assert (rarest({"a": visits, "b": 0}, stages, ["b"]) == ["a"]) is eligible


def test_the_rarest_come_first_as_many_as_the_stage_has_and_none_of_its_own():
    visits = {"a": 9, "b": 5, "c": 7, "d": 4}
    assert rarest(visits, 100, ["d", "x"]) == ["b", "c"]


def test_replayed_concepts_are_listed_for_the_method_and_count_as_visits():
    stages = made(imbalance=6, slope=0.09, replay="frequency", methods=[{"name": "l2"}])
    listed = [stage for stage in stages if len(stage["methods"]) == 2]
    assert listed and all(stage["methods"][0] == {"name": "l2"} for stage in stages)
    seen = Counter()
    for stage in stages:
        replayed = stage["methods"][1]["visits"] if len(stage["methods"]) == 2 else {}
        assert all(seen[concept] == n >= 3 for concept, n in replayed.items())
        seen.update([*stage["recipe"], *replayed])


def test_it_is_planned_like_any_list_of_stages():
    from mcit.plan.plan import parse_run
    from mcit.plan.references import reference_problems
    from tests.fakes.bench import TINY

    given = {"generate": "scole", "concepts": ["tiny/letter", "tiny/word", "tiny/yesno"], "stages": 5}
    config, problems = parse_run({**TINY, "stages": given})
    assert not problems and len(config.stages) == 5 and len(config.stages[0].recipe) == 2
    config, _ = parse_run({**TINY, "stages": {**given, "concepts": ["tiny/letter", "tiny/nothing"]}})
    assert any("tiny/nothing" in str(p) for p in reference_problems(config))


def test_a_concept_without_training_rows_is_refused_in_the_plan(tmp_path):
    from tests.fakes.bench import plan_of

    text = (shipped("data_recipes") / "tiny" / "word.yaml").read_text()
    lines = [line for line in text.splitlines() if "split: train" not in line and "validation" not in line]
    (tmp_path / "empty.yaml").write_text("\n".join(lines).replace("task: word", "task: empty"))
    concepts = {"generate": "scole", "concepts": ["tiny/letter", str(tmp_path / "empty.yaml")], "stages": 2}
    with pytest.raises(PlanError, match=r"stages\[[01]\].recipe: has no training rows"):
        plan_of(stages={**concepts, "per_stage": 1, "methods": []})
