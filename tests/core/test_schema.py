"""Golden copies of the shipped configs with every default filled in: a changed default is seen in review."""

import json
from pathlib import Path

import pytest

from mcit.core.config import apply_overrides, parse
from mcit.core.files import canonical_json
from mcit.core.paths import shipped
from mcit.core.schema import EvalConfig, StageConfig
from mcit.core.types import FORGET_DATA
from mcit.plan.plan import read_config
from mcit.plan.record import resolved

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(p.stem for p in shipped("configs").glob("*.yaml"))


def test_configs_are_shipped():
    assert {"tiny", "tiny-joint", "demo", "demo-joint"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_resolved_config_is_the_golden_one(name):
    """Written by ``python tests/core/test_schema.py``; look at the difference before you do."""
    config, _ = read_config(name)
    assert json.loads(canonical_json(resolved(config))) == json.loads((GOLDEN / f"{name}.json").read_text())


def test_adapter_and_projector_settings_of_a_stage_are_their_own():
    config, _ = read_config("tiny")
    assert config.stages[0].recipes == ["tiny/letter"]
    assert {s.adapter.rank for s in config.stages} == {8}


@pytest.mark.parametrize("key", FORGET_DATA)
def test_a_request_names_a_recipe_once(key):
    """A reference is stored by task and id, which rows read twice would share."""
    (problem,) = parse(StageConfig, {"recipe": "tiny/word-retain", key: ["a", "b", "a"]})[1]
    assert problem.where == key and "name 'a' once" in problem.what
    assert parse(StageConfig, {"recipe": "tiny/word-retain", key: ["a", "b"]})[0] is not None


@pytest.mark.parametrize("written", ["off", "'off'"])
def test_packs_of_an_evaluation_are_off_as_it_is_written(written):
    """YAML reads ``off`` as false."""
    found = apply_overrides({}, [f"eval.share_prefix={written}"])
    config, problems = parse(EvalConfig, found["eval"])
    assert not problems and config.share_prefix == "off"
    assert parse(EvalConfig, apply_overrides({}, ["eval.share_prefix=on"])["eval"])[1]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in NAMES:
        (GOLDEN / f"{each}.json").write_text(canonical_json(resolved(read_config(each)[0]), indent=1) + "\n")
