import itertools

import pytest

from mcit.core.profile import EVERY, PARTS, STEP, Profile, belongs_to, current, profiled, stepped, stepping, timed


class Counted:
    flops = 7

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def profile(monkeypatch):
    """One whose clock goes on by a second at each look."""
    with profiled() as profile:
        ticks = itertools.count(1)
        profile._clock, profile._since = lambda: float(next(ticks)), 0.0
        yield profile


def test_time_belongs_to_the_innermost_part_and_none_is_lost(profile):
    with timed("language forward"):
        with timed("vision"):
            pass
    belongs_to("01-a")
    with pytest.raises(ZeroDivisionError), timed("backward"):
        profile.enter("vision")  # what an error leaves open is closed
        1 / 0  # noqa: B018
    start, stage = profile.json()
    assert start["name"] == "start" and start["seconds"] == {"start-up": 2, "language forward": 2, "vision": 1}
    assert stage["name"] == "01-a" and stage["seconds"] == {"rest": 2, "backward": 1, "vision": 1}
    assert set(start["seconds"]) | set(stage["seconds"]) <= set(PARTS) and set(STEP) < set(PARTS)


def test_one_step_of_some_is_counted_with_its_tokens_and_seconds(profile):
    profile.counting = Counted
    for number in range(2 * EVERY):
        with stepping(number), timed("data"):
            pass
        with timed("checkpoint"):
            pass
        stepped(10)
    (times,) = profile.json()
    assert (times["steps"], times["tokens"]) == (2 * EVERY, 20 * EVERY)
    assert (times["counted_steps"], times["counted_tokens"], times["flops"]) == (2, 20, 14)
    assert times["counted_seconds"] == 2 * 3  # two of the step around one of its data


def test_the_device_is_waited_for_where_a_part_begins_or_ends(profile):
    waited = []
    profile.wait = lambda: waited.append(profile._parts[-1])
    with timed("backward"):
        pass
    assert waited == ["start-up", "backward"]


def test_without_a_profile_nothing_is_measured():
    assert current() is None and timed("data") is timed("vision") is stepping(1)
    stepped(5)
    belongs_to("01-a")
    with profiled(False) as none:
        assert none is None and current() is None
    with profiled() as some:
        assert current() is some and isinstance(some, Profile)
    assert current() is None
