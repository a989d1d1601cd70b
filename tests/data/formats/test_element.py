"""What readers yield."""

from mcit.data.formats.element import Element, RowError


def test_an_element_is_good_unless_it_says_so():
    assert not Element(3, {"id": 1}).problem
    error = RowError("what", "fix")
    assert (error.what, error.fix, str(error)) == ("what", "fix", "what")
