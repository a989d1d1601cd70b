import subprocess
import sys

import pytest
import yaml

from mcit.core.errors import ConfigError, DataError, McitError, PlanError
from mcit.plan.plan import make_plan, parse_run, read_config
from mcit.runs.run import config_digest
from tests.fakes.bench import TINY, plan_of


def problems_of(data):
    config, problems = parse_run(data)
    if config is not None and not problems:
        try:
            make_plan(config)
        except McitError as error:
            return list(error.problems), error
    return problems, None


def changed(**changes):
    return {**TINY, **changes}


def test_defaults_lie_under_every_stage_and_a_given_key_replaces_them_whole():
    data = changed(
        defaults={"epochs": 3, "methods": [{"name": "l2"}], "optim": {"lr": 0.5, "batch": 2}},
        stages=[{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno", "methods": [], "optim": {"lr": 0.1}}],
    )
    config, problems = parse_run(data)
    assert not problems
    first, second = config.stages
    assert first.epochs == second.epochs == 3
    assert first.methods == [{"name": "l2"}] and second.methods == []
    assert first.optim.batch == 2 and second.optim.batch == 16 and second.optim.lr == 0.1


def test_use_takes_the_shipped_settings_and_given_keys_win():
    config, problems = parse_run(changed(stages=[{"recipe": "r", "methods": [{"use": "lwf", "weight": 7}]}]))
    assert not problems
    assert config.stages[0].methods == [{"name": "lwf", "weight": 7, "temperature": 2.0}]
    _, problems = parse_run(changed(stages=[{"recipe": "r", "methods": [{"use": "lwff"}]}]))
    assert "did you mean 'lwf'" in problems[0].fix
    _, problems = parse_run(changed(defaults={"epoch": 1}))
    assert problems[0].where == "defaults.epoch" and "did you mean 'epochs'" in problems[0].fix


def test_an_unknown_key_hides_no_wrong_reference():
    bad = changed(sed=1, stages=[{"recipe": "tiny/leter", "optim": {"lrr": 1}}])
    _, problems = parse_run(bad)
    assert {p.where for p in problems} == {"sed", "stages[0].optim.lrr", "stages[0].recipe"}


def test_schema_and_reference_problems_come_without_torch(tmp_path):
    code = (
        "import sys\nfrom mcit.plan.plan import read_config\nfrom mcit.core.errors import McitError\n"
        f"try:\n    read_config({str(tmp_path / 'x.yaml')!r})\nexcept McitError as e:\n    print(e)\n"
        "bad = {'torch', 'transformers'} & set(sys.modules)\nprint('LOADED', sorted(bad))\n"
    )
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(changed(stages=[{"recipe": "nowhere"}])))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nowhere" in done.stdout and "LOADED []" in done.stdout


def test_method_settings_are_checked_with_their_place():
    problems, error = problems_of(
        changed(
            stages=[
                {"recipe": "tiny/letter", "methods": [{"name": "l2", "wieght": 1}, {"name": "lwf", "temperature": 0}]}
            ]
        )
    )
    assert {p.where for p in problems} == {"stages[0].methods[0].wieght", "stages[0].methods[1].temperature"}
    assert isinstance(error, ConfigError)


def test_targets_and_groups_that_match_nothing_are_found_on_the_skeleton():
    problems, error = problems_of(changed(defaults={"adapter": {"targets": ["q_porj"]}}))
    assert isinstance(error, PlanError) and error.exit_code == 3
    assert problems[0].where == "stages[0].adapter.targets" and "did you mean 'q_proj'" in problems[0].fix
    assert len(problems) == 2, "one per stage"


def test_rows_that_do_not_fit_are_found_before_weights_load(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"id": "short", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}\n'
        '{"id": "long", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "'
        + "x" * 600
        + '"}]}\n'
    )
    recipe = {
        "name": "t/long",
        "task": "long",
        "licence": "none",
        "sources": [{"kind": "llava", "path": "rows.jsonl", "images": ".", "split": "train"}],
        "eval": {"scorer": "exact", "style": "word", "max_new_tokens": 4},
    }
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(recipe))
    problems, error = problems_of(changed(stages=[{"recipe": str(tmp_path / "long.yaml")}]))
    assert any("rows.jsonl:2:long" in p.where for p in problems), problems
    assert error.exit_code in (3, 4)


def test_broken_data_is_a_data_error_naming_stage_and_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "x", "conversations": []}\n')
    recipe = {
        "name": "t/bad",
        "task": "bad",
        "licence": "none",
        "sources": [{"kind": "llava", "path": "rows.jsonl", "images": ".", "split": "train"}],
        "eval": {"scorer": "exact", "style": "word", "max_new_tokens": 4},
    }
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(recipe))
    problems, error = problems_of(changed(stages=[{"recipe": str(tmp_path / "bad.yaml")}]))
    assert isinstance(error, DataError) and "stages[0].recipe" in problems[0].where
    assert any("rows.jsonl:1" in p.where for p in problems)


def test_steps_are_rounded_up_and_limited():
    """120 rows, 2 epochs, batch 16: 240 / 16 = 15 steps; batch 36: 6.67 -> 7; max_steps 5 wins."""
    optim = {"batch": 16}
    assert plan_of(defaults={"epochs": 2, "optim": optim, "max_steps": None}).stages[0].steps == 15
    assert plan_of(defaults={"epochs": 2, "optim": {"batch": 36}, "max_steps": None}).stages[0].steps == 7
    assert plan_of(defaults={"epochs": 2, "optim": optim, "max_steps": 5}).stages[0].steps == 5


def test_joint_stage_and_repeated_tasks_get_names():
    plan = plan_of(
        stages=[{"recipe": ["tiny/letter", "tiny/word"]}, {"recipe": "tiny/letter"}, {"recipe": "tiny/letter"}]
    )
    assert [s.folder for s in plan.stages] == ["01-joint", "02-letter", "03-letter-2"]
    assert [t.name for t in plan.tasks] == ["letter", "word"] and plan.stages[0].rows == 240


def test_identity_leaves_engine_and_checkpoint_out():
    def digest(**changes):
        config, _ = parse_run(changed(**changes))
        return config_digest(config.model_dump(mode="json"))

    same = digest()
    assert digest(engine={"micro_batch": 2}) == same == digest(checkpoint={"every": 7})
    assert digest(seed=4) != same and digest(eval={"tasks": "all"}) != same


def test_eval_tasks_must_exist():
    problems, _ = problems_of(changed(eval={"tasks": ["leter"]}))
    assert problems[0].where == "eval.tasks" and "did you mean 'letter'" in problems[0].fix


def test_a_stage_without_steps_does_nothing():
    problems, _ = problems_of(changed(defaults={"epochs": 0}))
    assert any("does nothing" in p.what for p in problems)


def test_settings_are_checked_before_any_data_is_built(monkeypatch):
    """A misspelt weight was told after minutes of building."""
    from mcit.plan import plan as module

    def built(*args, **kwargs):
        raise AssertionError("data was built first")

    monkeypatch.setattr(module, "build_tasks", built)
    problems, error = problems_of(
        changed(stages=[{"recipe": "tiny/letter", "methods": [{"name": "l2", "weight": -1}]}])
    )
    assert isinstance(error, ConfigError) and problems[0].where == "stages[0].methods[0].weight"


def test_settings_that_are_a_plain_class_are_told(tmp_path, monkeypatch):
    (tmp_path / "plain_config.py").write_text(
        "from mcit.methods.base import Method\nclass M(Method):\n    class Config:\n        weight = 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    methods = [{"name": "plain_config:M", "weight": 1}]
    problems, error = problems_of(changed(stages=[{"recipe": "tiny/letter", "methods": methods}]))
    assert (
        isinstance(error, ConfigError)
        and "is no MethodConfig" in problems[0].what
        and "MethodConfig" in problems[0].fix
    )


def test_a_warm_up_longer_than_its_stage_is_said():
    def notes(**optim):
        given = {"max_steps": 4, "optim": {**TINY["defaults"]["optim"], **optim}}
        return [note for note in plan_of(defaults=given).notes if "warmup" in note]

    assert notes(warmup=4) == notes(warmup=0.99) == []
    first, _ = notes(warmup=8)
    assert first.startswith(
        "stages[0].optim.warmup: 8 steps, and the stage has 4: the learning rate ends at 0.5 of optim.lr"
    )


def test_a_config_file_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no such config") as caught:
        read_config("mine/run.yaml")
    assert str(tmp_path) in caught.value.fix and "demo" not in caught.value.fix
