"""Learn, corrupt, forget, repair."""

import pytest

from mcit.core.errors import ConfigError
from mcit.sequences.restor import Restor

GIVEN = {"entities": "true", "rest": ["rest"], "corrupted": "false", "forget": {"methods": [{"use": "npo"}]}}


def made(**settings):
    return Restor(Restor.Config(**{**GIVEN, **settings})).stages(1)


def test_the_four_stages():
    assert made(unrelated=["facts"], corrupt={"max_steps": 3}) == [
        {"name": "learn", "recipe": ["rest", "true"]},
        {"name": "corrupt", "recipe": ["false", "facts"], "max_steps": 3},
        {"name": "forget", "recipe": ["rest"], "forget": "false", "methods": [{"use": "npo"}]},
        {"name": "repair", "recipe": ["rest"], "max_steps": 10},
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corrupted": "true"}, "true plays two parts"),
        ({"rest": ["a", "false"]}, "false plays two parts"),
        ({"forget": {"forget": "x"}}, "'forget' is the sequence's own"),
        ({"learn": {"name": "x"}}, "'name' is the sequence's own"),
    ],
)
def test_what_makes_no_sequence_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        made(**settings)


def test_the_example_is_planned_with_false_answers_about_the_same_pictures():
    from mcit.plan.plan import parse_run, read_config
    from mcit.plan.references import reference_problems
    from tests.fakes.bench import TINY

    config, _ = read_config("demo-restor", [])
    assert [stage.name for stage in config.stages] == ["learn", "corrupt", "forget", "repair"]
    assert config.stages[2].forget == "demo/naming-false" and not reference_problems(config)
    config, problems = parse_run({**TINY, "stages": {"generate": "restor", **GIVEN, "entities": "tiny/nothing"}})
    assert not problems and any("tiny/nothing" in str(p) for p in reference_problems(config))
    config, problems = parse_run({**TINY, "stages": {"generate": "restor", **GIVEN, "corrupted": "true"}})
    assert any("plays two parts" in str(p) for p in problems)
