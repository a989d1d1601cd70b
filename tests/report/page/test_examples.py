"""Rows that a report shows."""

from mcit.report.matrix import measure
from mcit.report.page.examples import examples, shown


def test_rows_that_changed_come_first_with_all_their_answers(fake_run) -> None:
    """Rows 5 and 6 of ten go from right to wrong; the others never change."""
    run = fake_run([["a"], ["b"]]).shares(1, "a", 7).shares(2, "a", 5).shares(2, "b", 1)
    rows = examples(run.root, measure(run.root), "strict", per_task=3)["a"]
    assert [row["id"] for row in rows] == ["a-0", "a-5", "a-6"]
    assert rows[1]["answers"] == [
        {"after": "01-s1", "text": "cat", "right": True},
        {"after": "02-s2", "text": "dog", "right": False},
    ]
    assert rows[0]["picture"] is None and rows[0]["gold"] == "cat"


def test_long_and_hostile_texts_are_made_visible() -> None:
    text = shown("a\u202eb\x1b[31mc\n" + "x" * 100_000)
    assert text.startswith("a\\u202eb\\u001b[31mc\n") and text.endswith("more characters)") and len(text) < 700
    assert shown("füße 漢字") == "füße 漢字"
