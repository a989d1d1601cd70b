"""The page: what it says, that nothing of the data becomes markup, and several runs with paired differences."""

import re

import pytest

from mcit.cli.main import main
from mcit.core.errors import StateError
from mcit.report.page.html import write_page

HOSTILE = '</script><img src=x onerror=alert(1)>"&\u202eevil'


def page(runs, tmp_path, **given):
    return write_page([run.root for run in runs], tmp_path / "page.html", **given)[0].read_text()


def test_the_first_screen_answers_what_was_forgotten_and_what_it_cost(three, tmp_path) -> None:
    three.progress("01-s1", steps=40, tokens=1200, seconds=100, loss=0.25)
    text = page([three], tmp_path)
    first = text[text.index('id="first"') : text.index("</section>")]
    assert "No task lost accuracy" in first and "Quote MFN 46.7" in first and "1 min 40 s" in first
    assert (tmp_path / "page.html").stat().st_size < 3e6


def test_changed_metrics_are_named_and_not_drawn(three, tmp_path) -> None:
    three.progress("01-s1")
    assert "01-s1" in page([three], tmp_path)
    path = three.root / "stages" / "01-s1" / "metrics.jsonl"
    path.write_text(path.read_text().replace("1.0", "2.0"))
    with pytest.raises(StateError, match="checksum differs") as error:
        page([three], tmp_path)
    assert error.value.where == str(path)


def test_a_changed_config_is_named_and_not_shown(three, tmp_path) -> None:
    path = three.root / "resolved.yaml"
    path.write_bytes(path.read_bytes() + b"# \xff")
    with pytest.raises(StateError, match="checksum differs") as error:
        page([three], tmp_path)
    assert error.value.where == str(path)


def test_it_needs_no_network(three, tmp_path) -> None:
    body = re.sub(r"<script>.*?</script>", "", page([three], tmp_path), flags=re.DOTALL)
    assert not re.search(r'(src|href)\s*=\s*"?https?:', body) and "default-src 'none'" in body


def test_data_never_becomes_markup(fake_run, tmp_path) -> None:
    run = fake_run([["a"], ["b"]]).score(1, "a", [HOSTILE, "cat"]).score(2, "a", ["dog", HOSTILE]).shares(2, "b", 1)
    text = page([run], tmp_path)
    assert "<img src=x" not in text and "&lt;/script&gt;&lt;img" in text and "\\u202eevil" in text
    assert text.count("</script>") == 3


def test_long_answers_are_cut_off_and_the_page_stays_small(fake_run, tmp_path) -> None:
    run = fake_run([["a"]]).score(1, "a", ["cat", *["<b>" + "x" * 100_000] * 9])
    text = page([run], tmp_path)
    assert "(99,403 more characters)" in text and "x" * 1000 not in text and len(text) < 3e6


def test_a_run_that_is_being_written_or_without_any_score(fake_run, tmp_path) -> None:
    run = fake_run([["a"], ["b"]])
    assert "Nothing has been scored yet." in page([run], tmp_path)
    assert "Nothing has been scored yet." in page([run, fake_run([["a"]], "other")], tmp_path)
    assert "01-s1" in page([run.shares(1, "a", 5)], tmp_path)


def test_runs_of_different_tasks(fake_run, tmp_path) -> None:
    a, b = fake_run([["t"]], "a").shares(1, "t", 4), fake_run([["v"]], "b").shares(1, "v", 4)
    assert page([a, b], tmp_path).count("<td>t</td>") == 1


def test_metrics_of_several_runs_have_paired_differences(fake_run, tmp_path) -> None:
    """MFN 45 and 60; the second run of other questions has a value and no difference; nobody measured FWT."""
    a = fake_run([["t"], ["u"]], "a").shares(1, "t", 5).shares(2, "t", 4).shares(2, "u", 5)
    b = fake_run([["t"], ["u"]], "b").shares(1, "t", 5).shares(2, "t", 7).shares(2, "u", 5)
    c = fake_run([["t"], ["u"]], "c").shares(1, "t", 5, n=8).shares(2, "t", 4, n=8).shares(2, "u", 4, n=8)
    (row,) = re.findall(r"<tr><td>MFN.*?</tr>", page([a, b, c], tmp_path))
    first, second, third = re.findall(r"<td data-sort=.*?</td>", row)
    assert ">45.00<" in first and "+" not in first
    assert ">60.00<" in second and '<span class="span">+15.00 (' in second
    assert ">50.00<" in third and "+" not in third and "FWT" not in page([a, b], tmp_path)


def test_a_constant_answer_is_a_row_and_an_early_end_is_told(three, tmp_path) -> None:
    three.progress("01-s1", steps=12, ended={"step": 12, "planned": 40, "reason": "a <bound>"})
    text = page([three], tmp_path)
    (row,) = re.findall(r'<tr><td class="short">best constant.*?</tr>', text)
    assert row.count(">100.0<") == 3  # all gold answers are cats
    assert '12<span class="span">of 40: a &lt;bound&gt;</span>' in text


def test_no_run_is_an_error(tmp_path) -> None:
    with pytest.raises(StateError):
        write_page([tmp_path], tmp_path / "page.html")


def test_from_the_command_line(three, tmp_path, capsys) -> None:
    assert main(["report", str(three.root), "--html", "--figures"]) == 0
    assert (three.root / "report" / "report.html").is_file()
    assert (three.root / "report" / "report-accuracy.svg").is_file() and "html: " in capsys.readouterr().out
    assert main(["report", str(three.root), str(three.root), "--html"]) == 2
    assert main(["report", str(three.root), "--html", str(tmp_path)]) == 2
    assert main(["report", str(three.root), "--figures"]) == 2
    assert "needs a name" in capsys.readouterr().err
