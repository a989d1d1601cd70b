"""Gold configs: what is left out, what stays, and which run is one."""

from types import SimpleNamespace

import pytest

from mcit.core.errors import ConfigError, DataError, PlanError, StateError
from mcit.core.types import Row, Turn
from mcit.data.folder import DataFolder
from mcit.plan import forgetting
from mcit.plan.forgetting import overlap
from mcit.plan.gold import check_gold, gold_config
from tests.fakes.bench import TINY, plan_of
from tests.fakes.method_plans import NAMES, bench_settings, companions, data_of, forgets, stage_settings

STAGES = [
    {"recipe": "tiny/word"},
    {
        "name": "forget-red",
        "recipe": "tiny/word-retain",
        "forget": "tiny/word-forget",
        "methods": [{"use": "gs_lora", "per_step": 4}, {"use": "l2"}],
    },
    {"recipe": "tiny/letter"},
]


@pytest.fixture(scope="module")
def plan(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        return plan_of(stages=STAGES)


def test_the_same_sequence_without_the_rows(plan):
    gold = gold_config(plan.config, [])
    assert gold.without == ["tiny/word-forget"] and gold.name == "bench-gold"
    assert [stage.recipe for stage in gold.stages] == ["tiny/word", "tiny/word-retain", "tiny/letter"]
    assert gold.stages[1].forget == [] and "bounded_forget" not in [m["name"] for m in gold.stages[1].methods]
    assert "l2" in [m["name"] for m in gold.stages[1].methods] and gold.stages[0] == plan.config.stages[0]


def test_retained_rows_have_their_usual_loss(plan):
    """KL minimisation without rows to forget has no gradient but rounding errors, which Adam takes for one."""
    stage = plan.config.stages[1].model_copy(update={"methods": [{"name": name} for name in ("ga", "retain_kl", "l2")]})
    config = plan.config.model_copy(update={"stages": [plan.config.stages[0], stage]})
    assert [method["name"] for method in gold_config(config, []).stages[1].methods] == ["l2"]


def test_no_row_to_forget_is_trained_on_and_test_rows_stay(plan):
    from mcit.plan.plan import make_plan

    gold = make_plan(gold_config(plan.config, ["tiny/word-forget"]))
    forget = plan.stages[1].forget
    before, after = (DataFolder.open(p.stages[0].tasks[0].folder) for p in (plan, gold))
    gone = len(overlap(forget, plan.stages[0].tasks))
    assert 0 < gone <= forget[0].rows["train"] and not overlap(forget, gold.stages[0].tasks)
    assert after.counts == {**before.counts, "train": before.counts["train"] - gone}
    assert gold.stages[1].tasks == plan.stages[1].tasks and gold.digest != plan.digest


def test_a_task_of_which_nothing_is_left(plan):
    from mcit.plan.plan import make_plan

    config = plan.config.model_copy(update={"without": ["tiny/letter"], "stages": plan.config.stages[2:]})
    with pytest.raises(PlanError, match="no training rows left without those of tiny/letter") as caught:
        make_plan(config)
    assert "--without" in caught.value.problems[0].fix


RESTOR = [
    {"recipe": "tiny/word", "name": "learn"},
    {"recipe": ["tiny/word-false", "tiny/letter"], "name": "corrupt"},
    {"recipe": "tiny/letter", "name": "forget", "forget": "tiny/word-false", "methods": [{"use": "npo"}]},
]


def test_true_rows_that_false_ones_overwrote_stay(cache, monkeypatch):
    """The gold run of a corrupted sequence never saw the false answers, and learned the true ones; the plan says so."""
    from mcit.plan.plan import make_plan

    monkeypatch.setenv("MCIT_CACHE", str(cache))
    corrupted = plan_of(stages=RESTOR)
    gold = make_plan(gold_config(corrupted.config, []))
    assert gold.stages[0].tasks == corrupted.stages[0].tasks
    assert [task.recipe for task in gold.stages[1].tasks] == ["tiny/letter"]
    (note,) = [p for p in gold.notes if "rows stay" in p]
    assert note.startswith("without: tiny/word") and "tiny/word-false" in note
    late = [RESTOR[1], {**RESTOR[0], "adapter": {"carry": "merge"}}, RESTOR[2]]
    again = make_plan(gold_config(plan_of(stages=late).config, []))
    assert again.stages[1].rows < corrupted.stages[0].rows, "nothing of what is taught after them, or beside them"
    assert not [p for p in again.notes if "rows stay" in p]


def test_every_row_that_asks_the_same_is_left_out(tmp_path, monkeypatch):
    """Of several in one recipe too, whatever they answer: another wording gives it away as well."""

    def row(task, line, question, answer):
        return Row(str(line), (), (Turn("user", question), Turn("assistant", answer)), task, task)

    tasks = {
        "a": [row("a", 1, "A?", "yes"), row("a", 2, "A?", "It is."), row("a", 3, "B?", "no")],
        "b": [row("b", 1, "A? ", "yes"), row("b", 2, "C?", "yes")],
        "asked": [row("asked", 1, "A?", "yes"), row("asked", 2, "C?", "no")],
    }
    monkeypatch.setattr(forgetting, "_rows", lambda names: [r for name in names for r in tasks[name.recipe]])
    specs = {name: SimpleNamespace(recipe=name) for name in tasks}
    out, stay = forgetting.to_leave_out([(specs["a"],), (specs["a"], specs["b"])], (specs["asked"],))
    assert out == {"a": ["a:1", "a:2"], "b": ["b:1", "b:2"]} and stay == {}


def test_a_recipe_of_which_not_even_a_test_row_is_left(plan):
    """tiny/word-false has training rows alone: beside another recipe it goes, a stage of nothing else is refused."""
    from mcit.plan.plan import make_plan

    def without(recipe):
        stage = plan.config.stages[2].model_copy(update={"recipe": recipe, "name": "corrupt"})
        return plan.config.model_copy(update={"without": ["tiny/word-false"], "stages": [stage]})

    assert [task.recipe for task in make_plan(without(["tiny/letter", "tiny/word-false"])).tasks] == ["tiny/letter"]
    with pytest.raises(DataError, match="no training rows left without those of tiny/word-false") as caught:
        make_plan(without("tiny/word-false"))
    assert (
        caught.value.problems[0].where == "stages[0].recipe: tiny/word-false"
        and "--without" in caught.value.problems[0].fix
    )


def test_what_cannot_be_left_out(plan):
    with pytest.raises(ConfigError, match="no stage forgets 'tiny/letter'"):
        gold_config(plan.config, ["tiny/letter"])
    with pytest.raises(ConfigError, match="no stage forgets"):
        gold_config(gold_config(plan.config, []), [])


def test_an_edit_that_only_forgets_leaves_no_stage(plan):
    stage = plan.config.stages[1].model_copy(update={"epochs": 0})
    config = plan.config.model_copy(update={"stages": [plan.config.stages[0], stage]})
    assert [s.recipe for s in gold_config(config, []).stages] == ["tiny/word"]


def test_only_a_gold_run_of_this_lineage_is_one(plan):
    gold = gold_config(plan.config, [])
    check_gold(plan, gold, where="G")
    check_gold(plan, gold.model_copy(update={"name": "other", "engine": plan.config.engine}), where="G")
    with pytest.raises(StateError, match="is no gold run"):
        check_gold(plan, plan.config, where="G")
    with pytest.raises(StateError, match="another lineage: seed"):
        check_gold(plan, gold.model_copy(update={"seed": 9}), where="G")
    with pytest.raises(StateError, match="was trained on 'tiny/word-forget'"):
        check_gold(plan, gold.model_copy(update={"without": ["tiny/letter"]}), where="G")


def test_every_method_that_forgets_leaves_a_gold_run():
    """One stage for each of them after a learned one; the gold run has nothing that reads rows to forget, filters included."""
    from mcit.plan.plan import make_plan

    stages = [{"recipe": "tiny/word"}]
    for name in filter(forgets, NAMES):
        methods = [{"name": name, **bench_settings(name)}]
        methods += [{"name": other, **bench_settings(other)} for other in companions(methods)]
        data = {**data_of(name)["stages"][1], "name": f"by-{name.replace('_', '-')}"}
        stages.append({**data, "adapter": stage_settings(name), "methods": methods})
    stages += [{**stages[-1], "name": "guarded", "epochs": 0, "methods": [{"use": "guard"}], "decouple": []}]
    plan = plan_of(stages=stages, eval={**TINY["eval"], "filters": ["guard", {"use": "strip"}]})
    gold = gold_config(plan.config, [])
    assert len(gold.stages) == len(stages) - 1 and gold.eval.filters == [{"use": "strip"}]
    assert not any(stage.forget or stage.decouple for stage in make_plan(gold).stages)
    assert not any(stage.methods for stage in gold.stages if stage.name in ("by-prompt-decouple", "by-guard"))


def test_a_filter_stays_while_a_stage_leaves_what_it_reads(plan):
    """Of two requests one is left out: the other stage still fits the detector."""
    guard = {**STAGES[1], "epochs": 0, "methods": [{"use": "guard"}]}
    other = {**guard, "name": "forget-letter", "recipe": "tiny/yesno", "forget": "tiny/letter"}
    config = plan_of(stages=[STAGES[0], guard, other], eval={**TINY["eval"], "filters": ["guard"]}).config
    assert gold_config(config, ["tiny/letter"]).eval.filters == ["guard"]
    assert gold_config(config, []).eval.filters == []
