"""Markdown, CSV, JSON and terminal tables."""

import csv
import io
import json

import pytest
from rich.console import Console

from mcit.core.errors import StateError
from mcit.core.files import read_json
from mcit.core.stored import write_sealed
from mcit.evals.continual import METRICS
from mcit.report.matrix import read_matrix
from mcit.report.page.html import page_text
from mcit.report.page.words import cost
from mcit.report.tables import NAMES, compare, full_report, markdown, matrix_csv, render_terminal, write_report
from mcit.runs.layout import RunLayout
from tests.fakes.run_dir import rejection


def test_files_are_written_and_stay_equal(three) -> None:
    paths = write_report(three.root)
    assert {kind: path.name for kind, path in paths.items()} == {
        "markdown": "report.md",
        "csv": "matrix.csv",
        "json": "report.json",
    }
    before = {kind: path.read_bytes() for kind, path in paths.items()}
    write_report(three.root)
    assert {kind: path.read_bytes() for kind, path in paths.items()} == before
    found = json.loads(before["json"])
    assert {"tasks", "base", "constant", "matrix", "format_validity", "metrics"} <= set(found)


def test_csv(fake_run) -> None:
    run = fake_run([["a"], ["b"]])
    run.shares(0, "a", 1).shares(1, "a", 5).shares(2, "b", 4)
    rows = list(csv.reader(io.StringIO(matrix_csv(full_report(run.root)))))
    assert rows == [["after", "a", "b"], ["base", "10.00", ""], ["01-s1", "50.00"], ["02-s2", "", "40.00"]]


def test_markdown_names_conventions_and_rounds_at_the_end(three) -> None:
    text = markdown(full_report(three.root))
    assert "| 03-s3 | 60.00 | 50.00 | 30.00 |" in text
    assert "| 01-s1 | 50.00 | – | – |" in text
    assert "| MFN, mean at the end | 46.67 |" in text
    assert "divided by all T tasks" in text
    assert "divided by the T-1 earlier tasks" in text
    assert "Superficial" in text
    assert "None" not in text
    assert set(METRICS) == set(NAMES)
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_a_stage_that_ended_early_says_when_and_why(three) -> None:
    ended = {"step": 12, "planned": 40, "reason": "the forget loss reached its bound"}
    three.progress("01-s1", steps=12, ended=ended)
    assert "| 12 of 40: the forget loss reached its bound |" in markdown(full_report(three.root))


def test_answers_that_were_chosen_are_counted(three, monkeypatch) -> None:
    report = full_report(three.root)
    assert "chosen" not in report and "chosen among" not in markdown(report)
    folder = three.root / "evals" / "after-01" / "a"
    score = {key: value for key, value in read_json(folder / "score.json").items() if key != "seal"}
    write_sealed(folder / "score.json", {**score, "answered": {"chosen": 7, "written": 3}})
    report = full_report(three.root)
    assert report["chosen"][0] == [7]
    assert "## Answers chosen among the options" in markdown(report) and "| 01-s1 | 7 of 10 | – | – |" in markdown(
        report
    )


def test_costs(three) -> None:
    three.progress("01-s1", steps=40, tokens=1200, seconds=12.5, loss=0.25, trained=4096, peak_bytes=1500 << 20)
    three.progress("02-s2", steps=40, tokens=1500, seconds=13, loss=None)
    text = markdown(full_report(three.root))
    assert "| 01-s1 | 40 | 1,200 | 4,096 | 12.50 | 1,500 | 0.2500 |" in text
    assert "| 02-s2 | 40 | 1,500 | – | 13.00 | – | – |" in text  # of an older mcit
    assert "| 03-s3 | – | – | – | – | – | – |" in text
    page = page_text([three.root])
    assert "<td>4,096</td>" in page and ">1,500 MiB</td>" in page
    assert [c["committed"] for c in full_report(three.root)["costs"]] == [True, True, False]


def shown(parts) -> str:
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def test_terminal(three) -> None:
    text = shown(render_terminal(read_matrix(three.root)))
    for word in ("60.00", "MFT", "MFN", "MAA", "BWT", "Forgetting", "best constant", "03-s3", "in the right form"):
        assert word in text
    assert text.count("BWT") == 2


def test_a_run_without_scores_can_be_shown(fake_run) -> None:
    run = fake_run([["a"]])
    assert "a" in shown(render_terminal(read_matrix(run.root)))
    assert write_report(run.root)["markdown"].is_file()


def test_a_rejected_stage_is_not_still_to_come(fake_run) -> None:
    run = fake_run([["a"], ["b"], ["c"]]).shares(1, "a", 5)
    write_sealed(RunLayout(run.root).gate("02-s2"), rejection("02-s2"))
    run.progress("01-s1")
    report = full_report(run.root)
    assert [stage["stage"] for stage in report["costs"]] == ["01-s1", "03-s3"]
    assert "1 of 2 stages are still to come" in cost(report)


def test_compare(three, fake_run) -> None:
    other = fake_run([["a"], ["d"]], name="other")
    other.shares(1, "a", 9).shares(2, "a", 8).shares(2, "d", 10)
    text = compare([full_report(three.root), full_report(other.root)])
    assert "|  | run | other |" in text
    assert "| MFT, mean right after learning | 40.00 | 95.00 |" in text
    assert "| a at the end | 60.00 | 80.00 |" in text
    assert "| d at the end | – | 100.00 |" in text


def test_read_only_folder_is_explained(three, monkeypatch) -> None:
    import errno

    from mcit.core import files

    def refused(*args, **kwargs):
        raise OSError(errno.EROFS, "read-only", str(three.root))

    monkeypatch.setattr(files.tempfile, "mkstemp", refused)
    with pytest.raises(StateError, match="read-only"):
        write_report(three.root)
