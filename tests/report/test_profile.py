import json

import pytest

from mcit.cli.main import main
from mcit.report.page.html import write_page
from mcit.report.profile import about_text, line, part_rows, profile_of, stage_rows
from mcit.report.tables import full_report, markdown
from mcit.runs.layout import RunLayout
from mcit.runs.profile import write_profile
from tests.fakes.profiles import start


@pytest.fixture
def summed(tmp_path):
    write_profile(RunLayout(tmp_path), [start(), start("02-b", tokens=100, peak=None), start("01-a", tokens=1600)])
    return profile_of(tmp_path)


def test_utilisation_is_that_of_the_steps_that_were_not_slowed_by_counting(summed):
    first, second = summed["stages"]
    assert first["utilisation"] == pytest.approx(2 * (2e9 / 100 * 1500) / (2 * 36 * 1e9))
    assert second["utilisation"] == pytest.approx(2e9 / (4 * 1e9))  # every step was counted
    assert first["tokens_per_second"] == 3200 / 80 and first["peak_bytes"] == 3 << 20
    assert summed["seconds"] == 150 and summed["parts"]["backward"] == 90 and summed["commands"] == 3
    assert summed["utilisation"] == pytest.approx((60e9 + 2e9) / (72e9 + 4e9))


def test_rows_and_words(summed):
    assert part_rows(summed)[1] == ["data", "30.00", "20.0"] and len(part_rows(summed)) == 4
    rows = stage_rows(summed)
    assert rows[1] == ["02-b", "50.00", "16", "100", "2", "0.50", "–"] and rows[2][0] == "all"
    assert "1.0 GFLOP/s (cpu, 2 threads)" in about_text(summed) and "Of 3 commands" in about_text(summed)
    assert line(summed) == (
        "150 s of 3 commands: backward 60 %, data 20 %, checkpoint 16 %; 28 tokens/s in steps, utilisation 0.82"
    )


def test_a_run_without_steps_has_no_speed(tmp_path):
    write_profile(RunLayout(tmp_path), [start(tokens=0, counted=0)])
    found = profile_of(tmp_path)
    assert found["tokens_per_second"] is None and found["utilisation"] is None and "tokens" not in line(found)


def test_report_page_and_status_show_it(three, tmp_path, capsys):
    assert full_report(three.root)["profile"] is None and "Where time went" not in markdown(full_report(three.root))
    write_profile(RunLayout(three.root), [start()])
    text = markdown(full_report(three.root))
    page = write_page([three.root], tmp_path / "page.html")[0].read_text()
    assert "## Where time went" in text and "| backward | 30.00 | 60.0 |" in text
    assert ">Where time went</h2>" in page and ">backward</td>" in page and ">30.00</td>" in page


def test_status_says_it_in_a_line(tmp_path, capsys):
    from tests.fakes.run_dir import opened

    run = opened(tmp_path)
    write_profile(run.layout, [start()])
    assert main(["status", str(run.layout.root)]) == 0
    assert "  profile: 50 s of one command: backward 60 %" in capsys.readouterr().out
    assert main(["status", str(run.layout.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["profile"]["tokens"] == 1600
