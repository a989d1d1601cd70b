import pytest

from mcit.core.errors import ConfigError
from mcit.plan.plan import parse_run, read_config
from mcit.plan.sweep import read_orders, shared_with, stage_labels, sweep_name, variations
from mcit.runs.run import config_digest


@pytest.fixture
def config():
    return read_config("tiny")[0]


def test_orders_by_number_and_by_name(config):
    assert stage_labels(config) == ["letter", "yesno", "word"]
    assert read_orders(config, []) == [(1, 2, 3)]
    assert read_orders(config, ["3,1,2", "yesno,letter,word"]) == [(3, 1, 2), (2, 1, 3)]
    assert read_orders(config, ["word, letter,2"]) == [(3, 1, 2)]


@pytest.mark.parametrize(
    ("texts", "what", "fix"),
    [
        (["1,2"], "is no order of the 3 stages", "exactly once"),
        (["1,2,2"], "is no order", "exactly once"),
        (["1,2,4"], "no one stage '4'", "known"),
        (["leter,2,3"], "no one stage 'leter'", "did you mean 'letter'"),
        (["1,2,3", "letter,yesno,word"], "given twice", "leave one out"),
        ([""], "no one stage ''", "known"),
    ],
)
def test_what_is_no_order_is_refused(config, texts, what, fix):
    with pytest.raises(ConfigError, match=what) as error:
        read_orders(config, texts)
    assert fix in str(error.value)


def test_names_that_are_not_unique_are_numbered():
    config, _ = parse_run({"name": "x", "base": {"family": "tiny"}, "stages": [{"recipe": "tiny/letter"}] * 2})
    assert read_orders(config, ["2,1"]) == [(2, 1)]
    with pytest.raises(ConfigError, match="number the stages"):
        read_orders(config, ["letter,2"])


def test_every_order_with_every_seed(config):
    made = variations(config, [(1, 2, 3), (3, 1, 2)], [5, 7])
    assert [(one.order, one.config.seed) for one in made] == [
        ((1, 2, 3), 5),
        ((3, 1, 2), 5),
        ((1, 2, 3), 7),
        ((3, 1, 2), 7),
    ]
    assert [stage.recipe for stage in made[1].config.stages] == ["tiny/word", "tiny/letter", "tiny/yesno"]
    assert made[1].config.name == "tiny-o3-1-2-s5" and made[1].config.base == config.base
    assert len({config_digest(one.resolved) for one in made}) == 4
    with pytest.raises(ConfigError, match="seed is given twice"):
        variations(config, [(1, 2, 3)], [1, 1])


def test_what_cannot_stand_in_some_order_is_named(config):
    stages = [
        {"recipe": "tiny/letter"},
        {"recipe": "tiny/word", "adapter": {"carry": "keep"}},
        {"recipe": "tiny/yesno", "adapter": {"kind": "none"}},
    ]
    config, _ = parse_run({"name": "x", "base": {"family": "tiny"}, "stages": stages})
    with pytest.raises(ConfigError, match="trains no adapter") as error:
        variations(config, [(3, 1, 2), (1, 2, 3)], [1])
    assert "x-o1-2-3-s1: stages[1].adapter.carry" in str(error.value)


def test_equal_beginnings_of_one_seed_are_shared_with_the_run_that_has_most_of_them(config):
    made = variations(config, [(1, 2, 3), (1, 3, 2), (2, 1, 3)], [1, 2])
    assert shared_with(made, 0) is None and shared_with(made, 2) is None
    assert shared_with(made, 1) == (made[0], 1)
    assert shared_with(made, 3) is None, "another seed trains other bytes"
    four, _ = parse_run(
        {
            "name": "x",
            "base": {"family": "tiny"},
            "stages": [{"recipe": f"tiny/{n}"} for n in ("letter", "yesno", "word", "letter")],
        }
    )
    made = variations(four, [(1, 2, 3, 4), (1, 3, 2, 4), (1, 3, 4, 2)], [1])
    assert shared_with(made, 2) == (made[1], 2)


def test_a_sweep_has_a_folder_of_its_own(config):
    names = {sweep_name(config, [(1, 2, 3)], seeds) for seeds in ([1], [1, 2])}
    assert len(names) == 2 and all(name.startswith("tiny-sweep-") for name in names)
