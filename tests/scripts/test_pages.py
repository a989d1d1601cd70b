"""scripts/pages.py: a table takes the place of the one before it, and only there."""

import pytest

from scripts.pages import write_between


def test_a_table_is_put_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- t -->\nold\n<!-- end -->\nb\n")
    write_between(page, ("<!-- t -->", "<!-- end -->"), r"| \1 |")
    assert page.read_text() == "a\n<!-- t -->\n| \\1 |\n<!-- end -->\nb\n"
    with pytest.raises(SystemExit, match="no place"):
        write_between(page, ("<!-- x -->", "<!-- end -->"), "new")
    page.write_text(page.read_text() * 2)
    with pytest.raises(SystemExit, match="no place"):
        write_between(page, ("<!-- t -->", "<!-- end -->"), "new")
