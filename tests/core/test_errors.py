import time

from mcit.core.errors import (
    ConfigError,
    DataError,
    Interrupted,
    McitError,
    PlanError,
    Problem,
    StateError,
    printable,
    shown,
)


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


def test_what_would_steer_a_terminal_is_shown_as_an_escape():
    problem = Problem("f.json:1:x\x1b[2J\ny", "says 'a\u202eb\x9b'", "do\x07 it")
    assert str(problem) == "f.json:1:x\\x1b[2J\\ny: says 'a\\u202eb\\x9b'\n  do\\x07 it"
    assert printable("tab\tline\nünïcödé 漢") == "tab\tline\nünïcödé 漢"


def test_problems_alike_are_told_together():
    alike = [Problem(f"f:{k}", f"image /a/{k}.png does not exist", "restore it") for k in range(3000)]
    other = [Problem("g:1", "is empty", "fill it")]
    lines = shown([*alike, *other])
    assert lines[:3] == [p.head for p in alike[:3]] and lines[4:6] == ["  restore it", "g:1: is empty"]
    assert lines[3] == "  … and 2,997 more like this, the last f:2999: image /a/2999.png does not exist"
    assert lines[-1] == "3,001 problems of 2 kind(s)" and len(lines) == 8
    assert shown(alike[:4]) == [*(p.head for p in alike[:4]), "  restore it"]
    many = shown([Problem(f"w{chr(97 + k)}", "x" * (k + 1), "") for k in range(26)])
    assert len(many) == 21 and many[-1] == "26 problems of 26 kind(s); 6 are not shown here, --json shows all"
    assert shown([]) == []


def test_what_is_wrong_may_quote_a_very_long_text():
    """Each letter of a word was asked whether a slash follows in it: half a minute for 200,000 of them."""
    began = time.process_time()
    (line,) = shown([Problem("f:1", "x" * 200_000 + "'y")])
    assert time.process_time() - began < 2 and len(line) == 200_007
    paths = [Problem("f:1", f"no '{k}/a b' at x/{k}.png or {k}", "") for k in range(9)]
    assert len(shown(paths)) == 5, "they differ in names, paths and numbers alone"
