import pytest
import yaml

from mcit.core.errors import ConfigError
from mcit.plan.plan import parse_run, read_config
from mcit.plan.references import reference_problems
from tests.fakes.bench import TINY


def test_reference_problems_are_shown_together_with_file_and_cure(tmp_path):
    bad = TINY | dict(
        base={"family": "tinny"},
        stages=[
            {"recipe": "tiny/leter", "name": "a", "methods": [{"name": "reply"}, {"weight": 1}]},
            {"recipe": "tiny/word", "name": "a"},
        ],
        eval={"filters": ["stripp"]},
    )
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(bad))
    with pytest.raises(ConfigError) as error:
        read_config(str(path))
    found = {p.where.removeprefix(f"{path}: "): p for p in error.value.problems}
    assert set(found) == {
        "base.family",
        "eval.filters[0]",
        "stages[0].recipe",
        "stages[0].methods[0].name",
        "stages[0].methods[1]",
        "stages[1].name",
    }
    assert "did you mean 'tiny'" in found["base.family"].fix
    assert "did you mean 'replay'" in found["stages[0].methods[0].name"].fix
    assert error.value.exit_code == 2


def test_dora_is_refused_with_its_reason_and_rslora_is_not():
    problems = reference_problems(parse_run({**TINY, "defaults": {"adapter": {"dora": True}}})[0])
    assert {p.where for p in problems} == {f"stages[{i}].adapter.dora" for i in range(len(problems))} and problems
    assert "exported" in problems[0].what and "rslora" in problems[0].fix
    assert not reference_problems(parse_run({**TINY, "defaults": {"adapter": {"rslora": True}}})[0])


def test_an_adapter_is_not_kept_for_a_stage_without_one():
    stages = [
        {"recipe": "tiny/letter", "adapter": {"carry": "keep"}},
        {"recipe": "tiny/word", "adapter": {"kind": "none"}},
    ]
    config, _ = parse_run({**TINY, "stages": stages})
    assert any("trains no adapter" in p.what for p in reference_problems(config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 8}, {"rank": "is 8, but the adapter that goes on from stages[0] has 16"}),
        ({"alpha": 64}, {"alpha": "is 64.0, but the adapter that goes on from stages[0] has 32.0"}),
        ({"rslora": True}, {"rslora": "is True, but the adapter that goes on from stages[0] has False"}),
        ({"targets": ["q_proj"]}, {"targets": "is ['q_proj'], but the adapter"}),
        ({"targets": ["v_proj", "q_proj"], "dropout": 0.1, "also_train": []}, {}),
    ],
)
def test_an_adapter_that_goes_on_keeps_its_shape_and_scale(change, said):
    """What it was made with stays: another alpha would be read and not used."""
    kept = {"carry": "keep", **({} if said else {"targets": ["q_proj", "v_proj"]})}
    stages = [{"recipe": "tiny/letter", "adapter": kept}, {"recipe": "tiny/word", "adapter": {**kept, **change}}]
    for carry in ("keep", "stack"):
        stages[0]["adapter"] = {**kept, "carry": carry}
        config, problems = parse_run({**TINY, "stages": stages})
        assert problems == []
        found = {p.where: p.what for p in reference_problems(config) if p.where.startswith("stages[1].adapter.")}
        expected = {f"stages[1].adapter.{key}": words for key, words in said.items() if carry == "keep"}
        assert found.keys() == expected.keys() and all(found[place].startswith(w) for place, w in expected.items())


MIXED = {"adapter": {"kind": "moe_lora", "carry": "stack"}}


@pytest.mark.parametrize(
    ("before", "stage", "words"),
    [
        ({"optim": {}}, {}, "the stage before leaves no moments"),
        ({"optim": {"moments": "keep", "kind": "adamw8bit"}}, {}, "trains with adamw8bit"),
        ({"adapter": {"carry": "merge"}}, {}, "carry: merge, so this stage trains new tensors"),
        ({"adapter": {"carry": "pool", "also_train": []}}, {}, "carry: pool"),
        (MIXED, MIXED, "carry: stack, so this stage trains new tensors"),
        ({"adapter": {"kind": "none"}}, {}, "adapter.kind: none"),
        ({}, {"adapter": {"kind": "none"}}, "adapter.kind: lora"),
        ({}, {"optim": {}}, None),
        ({}, {}, None),
        ({"adapter": {"kind": "none"}}, {"adapter": {"kind": "none"}}, None),
    ],
)
def test_an_optimiser_goes_on_where_there_is_one_of_the_same_tensors(before, stage, words):
    keep = {"optim": {"moments": "keep"}, "adapter": {"carry": "keep"}}
    stages = [{"recipe": "tiny/letter", **keep, **before}, {"recipe": "tiny/word", **keep, **stage}]
    config, problems = parse_run({"name": "x", "base": {"family": "tiny"}, "stages": stages})
    assert problems == []
    found = [p for p in reference_problems(config) if p.where == "stages[1].optim.moments"]
    assert [words in p.what for p in found] == ([True] if words else []) and all(p.fix for p in found)
