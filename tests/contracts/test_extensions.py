"""Extensions of the contract, each in the hands of a small method of tests/fakes/small.py: killed inside, sharded, bf16, …"""

import pytest

from mcit.core.files import read_json
from tests.fakes import small
from tests.fakes.bench import plan_of, run_plan, tensors_of
from tests.fakes.sharded import ShardedEngine

KEEP = {"rank": 4, "alpha": 8, "dropout": 0.2, "also_train": ["projector"], "carry": "keep"}
METHODS = {"RowFisher": {}, "TwoPass": {}, "Tuner": {}, "Ender": {}, "Chooser": {}}
KILLS = {"RowFisher": [3, 10], "TwoPass": [3, 12], "Tuner": [1, 7, 14], "Ender": [0, 1], "Chooser": [0, 7, 8]}
"""Moments of the method at which the process dies."""
LAYOUTS = {
    "accumulation": {"engine": {"micro_batch": 2, "workers": 0}},
    "checkpointing": {"engine": {"micro_batch": 4, "workers": 0, "gradient_checkpointing": True}},
    "bf16": {"base": {"family": "tiny", "dtype": "bf16"}},
}


def plan(name, **top):
    methods = [{"name": f"tests.fakes.small:{name}", **METHODS[name]}]
    return plan_of(**{"checkpoint": {"every": 2}, **top}, defaults={"adapter": KEEP, "methods": methods})


@pytest.fixture(scope="module")
def straight(tmp_path_factory, cache):
    """Tensors and progress of each stage, trained once per method."""
    done = {}

    def of(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            made = tensors_of(run_plan(plan(name), folder))
            done[name] = made, progress(folder, made)
        return done[name]

    return of


def progress(folder, made):
    return [read_json(folder / stage / "progress.json") for stage in made]


@pytest.fixture(autouse=True)
def alive():
    yield
    small.kill_after(None)


def test_every_small_method_is_here():
    classes = {n for n, c in vars(small).items() if isinstance(c, type) and issubclass(c, small.Method)} - {"Method"}
    assert classes == set(METHODS) == set(KILLS)


@pytest.mark.parametrize("name, moments", [(name, n) for name, kills in KILLS.items() for n in kills])
def test_a_kill_inside_is_resumed_bitwise(name, moments, straight, tmp_path):
    expected = straight(name)
    small.kill_after(moments)
    made = tensors_of(run_plan(plan(name), tmp_path))
    assert small._left is None, "the method never came to that moment"
    assert (made, progress(tmp_path, made)) == expected


@pytest.mark.parametrize("name", METHODS)
def test_the_sharded_fake_does_the_same_bitwise(name, straight, tmp_path):
    assert tensors_of(run_plan(plan(name), tmp_path, engine=ShardedEngine)) == straight(name)[0]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_has_an_effect_under_every_layout(name, layout, tmp_path):
    """Beside the same layout without it; and it runs to the end."""
    top = LAYOUTS[layout]
    made = tensors_of(run_plan(plan(name, **top), tmp_path / "on"))
    without = tensors_of(run_plan(plan_of(**top, defaults={"adapter": KEEP}), tmp_path / "off"))
    last = list(made)[-1]
    assert any(made[last][file] != digest for file, digest in without[last].items())
