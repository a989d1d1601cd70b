"""The router that knows tasks."""

from types import SimpleNamespace

from mcit.core.files import read_json
from mcit.routers.oracle import Oracle
from tests.fakes.bench import run_plan
from tests.train.test_routing import STAGES, pool_plan


def test_state_of_two_stages(tmp_path):
    run_plan(pool_plan({"use": "oracle"}, STAGES[:2]), tmp_path)
    state = read_json(tmp_path / "02-yesno" / "router" / "state.json")["state"]
    assert state == {"tasks": {"letter": "01-letter", "yesno": "02-yesno"}}


def test_the_tasks_member_and_the_newest_for_others():
    rows = [{"task": "b"}, {"task": "a"}, {"task": "new"}]
    assert Oracle.route(rows, ["1", "2", "3"], {"tasks": {"a": "1", "b": "2"}}, {}, None) == ["2", "1", "3"]


def test_state_comes_back():
    one, two = Oracle(Oracle.Config()), Oracle(Oracle.Config())
    one.learn("01-a", SimpleNamespace(stage=SimpleNamespace(tasks=[SimpleNamespace(name="a")])))
    two.load_state_dict(one.state_dict())
    assert two.state_dict() == {"tasks": {"a": "01-a"}}
