"""What every method owes, over every file in mcit/methods: a new method is in the suite by existing. No exceptions list."""

import ast
import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch

import mcit
from mcit.core.config import load_yaml, parse
from mcit.core.errors import StateError
from mcit.core.files import write_json
from mcit.core.paths import shipped
from mcit.core.tensorstore import HostTensors
from mcit.methods.base import HOOKS, Method
from mcit.methods.compose import MethodSet
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.method_plans import (
    NAMES,
    NEUTRAL,
    claims_of,
    cls_of,
    kept_settings,
    plan_with,
    shipped_settings,
    stage_settings,
)
from tests.fakes.sharded import ShardedEngine
from tests.fakes.syncs import counted

METHODS = Path(mcit.__file__).parent / "methods"
READS = 4
"""Most values that a method may read off the device in a step, over all units."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """By method: plan, folder, file digests and reads per step of two undisturbed stages; trained when first asked for."""
    made = {}

    def of(name):
        if name not in made:
            plan, folder = plan_with(name), tmp_path_factory.mktemp("straight") / "run"
            with counted() as reads:
                files = tensors_of(run_plan(plan, folder))
            made[name] = plan, folder, files, max(reads)
        return made[name]

    return of


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """File digests of two stages without any method, by adapter."""
    made = {}

    def of(adapter):
        key = json.dumps(adapter, sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("bare") / "run"
            made[key] = tensors_of(run_plan(plan_of(defaults={"adapter": adapter}), folder))
        return made[key]

    return of


def test_every_method_is_found():
    assert {"l2", "lwf", "replay"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_1_config_round_trip_and_unknown_key_refused(name):
    cls = cls_of(name)
    assert cls.name == name
    config, problems = parse(cls.Config, shipped_settings(name))
    assert not problems
    again, problems = parse(cls.Config, json.loads(config.model_dump_json()))
    assert again == config and not problems
    _, problems = parse(cls.Config, {"no_such_key": 1})
    assert problems and problems[0].what == "unknown key"
    for field_name, field in cls.Config.model_fields.items():
        assert field.annotation is not None, field_name


@pytest.mark.parametrize("name", NAMES)
def test_2_interrupted_and_resumed_equals_straight_bitwise(name, straight, tmp_path):
    plan, _, files, reads = straight(name)
    assert reads <= READS, "the host waits for the device once per unit"
    assert tensors_of(run_plan(plan, tmp_path / "resumed", stop_at=(2, 2))) == files


KEPT = [name for name in NAMES if kept_settings(name).get("carry") == "keep"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_2_the_same_on_an_adapter_that_goes_on_training(name, tmp_path):
    """``carry: keep``: stage 2 begins with stage 1's adapter under the same names, from memory and from disk."""
    plan = plan_with(name, adapter=kept_settings(name), optim={"batch": 8, "lr": 5e-3, "warmup": 0})
    straight = run_plan(plan, tmp_path / "straight")
    assert tensors_of(run_plan(plan, tmp_path / "resumed", stop_at=(2, 1))) == tensors_of(straight)


@pytest.mark.parametrize("name", NAMES)
def test_3_plain_engine_equals_sharded_fake_bitwise(name, straight, tmp_path):
    plan, _, files, _ = straight(name)
    assert tensors_of(run_plan(plan, tmp_path / "sharded", engine=ShardedEngine)) == files


@pytest.mark.parametrize("name", NAMES)
def test_4_order_of_listing_does_not_matter(name, tmp_path):
    """Beside two other methods, in both orders, on an adapter that stays: the same weights up to the order of sums."""
    others = [n for n in ("l2", "lwf", "replay") if n != name][:2]
    orders = [[name, *others], [*reversed(others), name]]
    values = []
    for i, order in enumerate(orders):
        result = run_plan(plan_with(*order, adapter=kept_settings(name)), tmp_path / str(i))
        values.append({n: p.detach().clone() for n, p in result["model"].named_parameters()})
    moved = 0
    for parameter, value in values[0].items():
        difference = (value - values[1][parameter]).norm()
        assert difference <= 2e-3 * value.norm() + 1e-7, parameter
        moved += 1
    assert moved


@pytest.mark.parametrize("name", NAMES)
def test_5_weight_zero_or_the_neutral_setting_equals_not_listed(name, straight, bare, tmp_path):
    neutral = {"weight": 0.0} if "weight" in cls_of(name).Config.model_fields else NEUTRAL.get(name)
    if neutral is None:
        claims = claims_of(name)
        says = claims.slots or claims.streams or any(need.startswith("stream:") for need in claims.needs)
        assert says, "a method without a weight must hold a slot or have a stream that says what it does instead"
        return
    off = tensors_of(run_plan(plan_with(name, changes={name: neutral}), tmp_path / "off"))
    without = bare(stage_settings(name))

    def deltas(files):
        return {s: {f: h for f, h in t.items() if "methods/" not in f} for s, t in files.items()}

    assert deltas(off) == deltas(without)
    assert deltas(straight(name)[2]) != deltas(without), "the shipped settings have no effect in two stages"


@pytest.mark.parametrize("name", NAMES)
def test_6_state_is_json_and_tensors_only(name, straight, tmp_path):
    """After two stages, a method rebuilt from its files alone holds the same; and no attribute is outside them."""
    plan, folder, _, _ = straight(name)
    home = folder / plan.stages[1].folder / "methods"
    files = {p.name for p in (home / name).iterdir()}
    assert files <= {"state.json", "tensors.safetensors"} and "state.json" in files
    built = MethodSet.build(plan.stages[1], {name: home / name})
    method = built.methods[0]
    recorded = json.loads((home / name / "state.json").read_text())
    assert json.loads(json.dumps(method.state_dict())) == recorded["state"]
    built.save(tmp_path / "again")
    for file in files:
        assert (tmp_path / "again" / name / file).read_bytes() == (home / name / file).read_bytes()
    for attribute, value in vars(method).items():
        assert not isinstance(value, torch.Tensor), f"{attribute} is a tensor outside the TensorStore"
    assert isinstance(method.tensors, HostTensors)


@pytest.mark.parametrize("name", NAMES)
def test_6_a_state_with_a_key_that_the_method_does_not_know_is_refused(name, straight, tmp_path):
    """Another version wrote it: it would be lost at the next save. The file and the key are named."""
    plan, folder, _, _ = straight(name)
    home = shutil.copytree(folder / plan.stages[1].folder / "methods" / name, tmp_path / name)
    record = json.loads((home / "state.json").read_text())
    write_json(home / "state.json", {**record, "state": {**record["state"], "more": 1}})
    with pytest.raises(StateError, match="unknown keys: more") as error:
        MethodSet.build(plan.stages[1], {name: home})
    assert error.value.where == str(home / "state.json") and error.value.fix


@pytest.mark.parametrize("name", NAMES)
def test_7_docstring_names_paper_hooks_state_and_shapes(name):
    source = (METHODS / f"{name}.py").read_text()
    text = ast.get_docstring(ast.parse(source)) or ""
    assert "arXiv:" in text or "doi:" in text, "no paper"
    for section in ("Hooks:", "State:"):
        assert section in text, section
    used = {h for h in HOOKS if getattr(cls_of(name), h) is not getattr(Method, h)} - {"check"}
    hooks_line = text[text.index("Hooks:") : text.index("State:")]
    for hook in used:
        assert hook in hooks_line, f"{hook} is used but not named"
    parts = [part for part in cls_of(name).Config.__mro__ if part.__module__.startswith("mcit.")]
    source = "\n".join(map(inspect.getsource, parts))
    for field in cls_of(name).Config.model_fields:
        assert '"""' in source[source.index(f"{field}:") :], f"{field} has no docstring"


@pytest.mark.parametrize("name", NAMES)
def test_8_no_forbidden_access(name):
    """Whole tensors only through the context: no parameter, gradient, model state or rank in a method file."""
    tree = ast.parse((METHODS / f"{name}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"named_parameters", "parameters", "grad", "cuda"}, ast.unparse(node)
            if node.attr == "data":
                assert ast.unparse(node) == "ctx.data", ast.unparse(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr != "item", ast.unparse(node)


@pytest.mark.parametrize("name", NAMES)
def test_9_has_a_test_and_a_config_with_its_citation(name):
    assert (Path(__file__).parent.parent / "methods" / f"test_{name}.py").is_file()
    text = (shipped("configs") / "methods" / f"{name}.yaml").read_text()
    assert (
        "arXiv:" in text.split("\n\n")[0] and load_yaml(shipped("configs") / "methods" / f"{name}.yaml")["name"] == name
    )


class Reading(Method):
    """Reads a number of every unit after each step."""

    def after_step(self, ctx):
        for unit in ctx.weights.units():
            with ctx.weights.gathered(unit) as tensors:
                ctx.log("size", sum(float(t.norm()) for t in tensors.values()))


def test_a_method_that_waits_for_the_device_once_per_unit_is_seen(tmp_path):
    """``float(tensor)`` passed the suite: only ``.item`` was looked for."""
    plan = plan_of(defaults={"methods": [{"name": "tests.contracts.test_methods:Reading"}], "max_steps": 1})
    with counted() as reads:
        run_plan(plan, tmp_path, only=1)
    assert reads[0] > 10 * READS / 2
