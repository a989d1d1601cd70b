"""Sections that Markdown and the page share."""

from mcit.report.page.html import write_page
from mcit.report.sections import Section, Table, gates, measured_columns, memory, num, page_sections
from mcit.report.tables import full_report, markdown

JUDGED = {
    "stage": "02-s2", "gate_sha256": "a" * 64, "verdict": "inconclusive", "decision": "promoted", "by": "<Ada>",
    "time": "2026-01-01", "ended": None,
    "results": [
        {"metric": "success", "task": None, "unit": "share", "at_least": 0.5, "at_most": None, "first": False,
         "estimate": 0.8, "interval": [0.6, 0.9], "n": 10, "verdict": "pass"},
        {"metric": "drop", "task": "a", "unit": "points", "at_least": None, "at_most": 1.0, "first": False,
         "estimate": None, "interval": None, "n": 0, "verdict": "not measured"},
    ],
}  # fmt: skip


def test_a_gate_says_each_threshold_and_who_decided():
    found = gates({"gates": [JUDGED]})
    table, lines = found.blocks[1:]
    assert table.rows[0] == ["02-s2", "success", "at least 0.5 share", "0.800 (0.600 to 0.900)", "10", "pass"]
    assert table.rows[1][3:] == ["–", "0", "not measured"]
    assert lines[0].startswith("02-s2: inconclusive; promoted by <Ada>") and gates({"gates": []}) is None


def test_what_a_run_does_not_have_is_no_section(three):
    assert page_sections(full_report(three.root)) == []
    assert memory({"slices": []}) is None and num(None) == "–" and num(1) == "1.00" and num(-1e-9) == "0.00"


def test_columns_in_which_nothing_was_measured_are_left_out(fake_run):
    """No stage has a neighbourhood or other wordings; one value in a column keeps it."""
    slices = [None, {"neighbourhood": [], "rephrased": [], "retention": ["a"]}]
    run = fake_run([["a"], ["b"]], slices=slices).shares(1, "a", 7).shares(2, "a", 5).shares(2, "b", 9)
    table = next(block for block in memory(full_report(run.root)).blocks if isinstance(block, Table))
    assert table.head[:2] == ["stage", "success"] and "locality" not in table.head and "rows kept" in table.head
    assert measured_columns(["a", "b", "c"], [["x", "–", "–"], ["y", "–", "1"]]).rows == [["x", "–"], ["y", "1"]]


def test_page_and_markdown_show_the_same_rows(three, tmp_path, monkeypatch):
    """What a stage did to the tasks before it, and a gate whose judge has a name that would be markup."""
    monkeypatch.setattr("mcit.report.tables.read_gates", lambda run: [JUDGED])
    report = full_report(three.root)
    page, text = write_page([three.root], tmp_path / "page.html")[0].read_text(), markdown(report)
    for section in page_sections(report):
        assert isinstance(section, Section) and f"## {section.title}" in text and f">{section.title}</h2>" in page
        for table in (block for block in section.blocks if isinstance(block, Table)):
            for row in table.rows:
                assert "| " + " | ".join(row) + " |" in text
                assert all(
                    f">{cell}</td>" in page
                    or f">{cell.replace(' (', ' <span class=@span@>(').replace('@', chr(34))}</span></td>" in page
                    for cell in row
                )
    assert '<td class="pass">pass</td>' in page and "promoted by &lt;Ada&gt;" in page and "<Ada>" not in page
