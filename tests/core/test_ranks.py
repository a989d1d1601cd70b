"""Acting together: rank 0's result or error reaches all, one rank's error reaches all, and nobody is left waiting."""

import pytest

from mcit.core.errors import DataError, McitError, Problem, StateError
from mcit.core.ranks import ONE, agreed, error_from, error_json, is_agreed, named, on_all, on_first
from tests.fakes.ranks import on_ranks


def test_one_rank_just_acts_and_its_error_is_its_own():
    assert on_first(ONE, lambda: 3) == on_all(ONE, lambda: 3) == 3
    assert (ONE.rank(), ONE.size(), ONE.gather_objects(7), ONE.broadcast_object(7)) == (0, 1, [7], 7)
    ONE.barrier()
    error = StateError("full", where="/disk")
    with pytest.raises(StateError) as caught:
        on_first(ONE, lambda: _raise(error))
    assert caught.value is error and not is_agreed(error)


def _raise(error):
    raise error


def test_only_rank_0_acts_and_all_get_its_value():
    acted = []
    found = on_ranks(3, lambda ranks: on_first(ranks, lambda: acted.append(ranks.rank()) or {"step": 4}))
    assert found == [{"step": 4}] * 3 and acted == [0]


def test_an_error_of_rank_0_is_raised_by_all_with_its_class_and_words():
    problems = [Problem("a.json:3", "is bad", "mend it"), Problem("b", "is worse")]
    found = on_ranks(3, lambda ranks: on_first(ranks, lambda: _raise(DataError.of(problems))))
    assert [type(error) for error in found] == [DataError] * 3
    assert {str(error) for error in found} == {"a.json:3: is bad\n  mend it\nb: is worse"}
    assert all(is_agreed(error) and error.exit_code == 4 for error in found)


def test_an_unforeseen_error_of_rank_0_keeps_its_class_there_and_its_name_elsewhere():
    first, other = on_ranks(2, lambda ranks: on_first(ranks, lambda: _raise(ZeroDivisionError("by nothing"))))
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(other, McitError) and other.what == "ZeroDivisionError: by nothing" and other.exit_code == 1


def test_an_error_of_one_rank_is_raised_by_all_with_the_rank_named():
    def act(ranks):
        return on_all(ranks, lambda: _raise(StateError("is missing", where="x.json")) if ranks.rank() == 1 else 5)

    found = on_ranks(3, act)
    assert {str(error) for error in found} == {"rank 1: x.json: is missing"}
    assert all(isinstance(error, StateError) and is_agreed(error) for error in found)


def test_an_error_that_all_have_names_no_rank():
    found = on_ranks(2, lambda ranks: on_all(ranks, lambda: _raise(StateError("is missing", where="x.json"))))
    assert [str(error) for error in found] == ["x.json: is missing"] * 2
    assert on_ranks(2, lambda ranks: on_all(ranks, ranks.rank)) == [0, 1]


def test_records():
    record = named(error_json(DataError("bad", where="f:1", fix="mend"), rank=2))
    assert record["problems"] == [{"where": "rank 2: f:1", "what": "bad", "fix": "mend"}] and record["exit"] == 4
    assert named(record) == record
    assert isinstance(error_from(record), DataError)
    assert type(error_from({**record, "class": "Sequence"})) is McitError
    error = DataError("bad")
    assert agreed(error) is error and is_agreed(error) and not is_agreed(DataError("bad"))
