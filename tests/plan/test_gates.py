"""Gate files in a plan: frozen, and refused where nobody computes what they ask for."""

import pytest

from mcit.core.errors import ConfigError, PlanError
from mcit.core.files import sha256_file
from mcit.plan.record import plan_json
from tests.fakes.bench import plan_of

SEEN = {"tasks": "seen", "rows": 6}


def gated(tmp_path, text, *, stage=1, **config):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    stages = [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno"}]
    stages[stage]["gate"] = str(path)
    return plan_of(stages=stages, **{"eval": SEEN, **config})


def test_thresholds_are_in_plan_json_with_their_checksum(tmp_path):
    text = "thresholds: [{metric: success, at_least: 0.5, unit: share}, {metric: drawdown, at_most: 2, unit: points}]\n"
    plan = gated(tmp_path, text)
    frozen = plan_json(plan)["stages"][1]["gate"]
    assert frozen["sha256"] == sha256_file(tmp_path / "gate.yaml") and frozen["monitor"] == []
    assert [t["metric"] for t in frozen["thresholds"]] == ["success", "drawdown"]
    assert plan_json(plan)["stages"][0]["gate"] is None


@pytest.mark.parametrize(
    "entry, says",
    [
        ("{metric: success, at_least: 0.5}", "success has no unit: write unit: share or unit: percent"),
        ("{metric: drawdown, at_most: 1}", "drawdown has no unit: write unit: points or unit: relative"),
        ("{metric: drawdown, at_most: 1, unit: percent}", "drawdown is given in points or relative, not in percent"),
        ("{metric: success, at_most: 1, unit: share}", "success has at_least and no other limit"),
        ("{metric: accuracy, at_least: 1, unit: share}", "accuracy and format_validity name a task"),
        ("{metric: min_acc, at_least: 1, unit: share}", "min_acc is for monitor"),
        ("{metric: sucess, at_least: 1, unit: share}", "metric"),
        ("{metric: success, at_least: 95, unit: share}", "95 is no limit in share: write a number from 0 to 1"),
        ("{metric: success, at_least: -1, unit: share}", "-1 is no limit in share"),
        ("{metric: success, at_least: 101, unit: percent}", "101 is no limit in percent"),
        ("{metric: success, at_least: true, unit: share}", "is a number, not true or false"),
        ("{metric: drawdown, at_most: 101, unit: points}", "write a number from -100 to 100"),
        ("{metric: drawdown, at_most: 101, unit: relative}", "101 is no limit in relative"),
    ],
)
def test_a_threshold_says_all_it_has_to(entry, says, tmp_path):
    with pytest.raises(ConfigError) as caught:
        gated(tmp_path, f"thresholds: [{entry}]\n")
    assert says in str(caught.value) and "gate.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "entry, says",
    [
        ("{metric: locality, at_least: 0.9, unit: share}", "nobody computes locality here"),
        ("{metric: generalisation, at_least: 0.9, unit: share}", "nobody computes generalisation here"),
        ("{metric: accuracy, task: word, at_least: 0.9, unit: share}", "nobody computes accuracy of task 'word'"),
    ],
)
def test_a_metric_that_nobody_computes_is_refused(entry, says, tmp_path):
    with pytest.raises(PlanError, match=says):
        gated(tmp_path, f"thresholds: [{entry}]\n")


def test_other_gates_that_cannot_work(tmp_path):
    success = "thresholds: [{metric: success, at_least: 0.5, unit: share}]\n"
    watch = f"{success}monitor: [{{metric: min_acc, at_least: 0.1, unit: share}}]\n"
    with pytest.raises(PlanError, match="nobody computes drawdown here"):
        gated(tmp_path, "thresholds: [{metric: drawdown, at_most: 1, unit: points}]\n", stage=0)
    with pytest.raises(PlanError, match="nobody measures inside the stage"):
        gated(tmp_path, watch)
    with pytest.raises(PlanError, match="the first stage has no earlier task to watch"):
        gated(tmp_path, watch, stage=0, probes=[{"use": "stability"}])
    with pytest.raises(PlanError, match="the probe stability measures none of the earlier tasks"):
        gated(tmp_path, watch, probes=[{"use": "stability", "tasks": ["yesno"]}])
    again = [{"recipe": "tiny/letter"}, {"recipe": "tiny/letter", "gate": str(tmp_path / "gate.yaml")}]
    with pytest.raises(PlanError, match="which trains all earlier ones again, has no earlier task to watch"):
        plan_of(stages=again, eval=SEEN, probes=[{"use": "stability"}])
    with pytest.raises(PlanError, match="nothing is scored in this run"):
        gated(tmp_path, success, eval={"tasks": "none"})
    with pytest.raises(ConfigError, match="there is no file"):
        plan_of(stages=[{"recipe": "tiny/letter", "gate": str(tmp_path / "no.yaml")}], eval=SEEN)


@pytest.mark.parametrize(
    "limit, rows, noted",
    [
        ("at_least: 0.6, unit: share", 6, False),
        ("at_least: 62, unit: percent", 6, True),
        ("at_least: 1, unit: share", 100, True),
    ],
)
def test_a_limit_that_the_rows_cannot_pass_is_noted(limit, rows, noted, tmp_path):
    """Six of six right answers have the lower bound 6 / (6 + 1.96²) = 0.6097; a share of 1 is out of reach of any number."""
    plan = gated(tmp_path, f"thresholds: [{{metric: success, {limit}}}]\n", eval={"tasks": "seen", "rows": rows})
    notes = [note for note in plan.notes if "can never pass: with" in note]
    assert bool(notes) == noted
    if rows == 6 and noted:
        assert "with 6 rows the lower bound of success is at most 60.97 percent, the limit is 62" in notes[0]
