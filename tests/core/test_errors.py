from mcit.core.errors import ConfigError, DataError, Interrupted, McitError, PlanError, Problem, StateError


def test_exit_codes():
    assert [c.exit_code for c in (ConfigError, PlanError, DataError, StateError, Interrupted)] == [2, 3, 4, 5, 75]


def test_a_problem_prints_where_what_and_fix():
    assert str(Problem("a.yaml:3", "is wrong", "mend it")) == "a.yaml:3: is wrong\n  mend it"
    assert str(Problem("", "is wrong")) == "is wrong"


def test_several_problems_in_one_error():
    error = DataError.of([Problem("a", "one", "x"), Problem("b", "two", "y")])
    assert isinstance(error, DataError) and isinstance(error, McitError)
    assert str(error) == "a: one\n  x\nb: two\n  y"
    assert (error.where, error.what, error.fix) == ("a", "one", "x")
