"""First line of an answer."""

import pytest

from mcit.core.types import Row, Turn
from mcit.evals.filters.strip import Strip

ROW = Row("r", (), (Turn("user", "q"), Turn("assistant", "a")), "t", "f:1")


@pytest.mark.parametrize(
    ("answer", "kept"), [(" a \nb", "a"), ("\n\n  red car\nblue", "red car"), ("", ""), (" \n ", ""), ("x", "x")]
)
def test_first_line(answer: str, kept: str) -> None:
    assert Strip().text(answer, ROW) == kept
