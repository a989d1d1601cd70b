"""The page in a real browser: nothing on the console, charts drawn, tables sorted by a click, nothing wider than a phone."""

import os
import shutil
import time
from pathlib import Path

import pytest

from mcit.report.page.html import write_page
from scripts.bench.page import QUIET

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


def opened(browser, path, *, width=1000, dark=False):
    """The page with what its console said."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(f"file://{path}")
    page.wait_for_selector("#chart-accuracy svg")
    return page, said


@pytest.fixture
def written(fake_run, tmp_path):
    long = "It is a fine cat, I think it must be."
    slices = [None, {"neighbourhood": [], "rephrased": [], "retention": ["animals"]}]
    run = fake_run([["animals"], ["b"]], slices=slices).shares(1, "animals", 7)
    run.score(2, "animals", ["cat"] + [long] * 5 + ["<b>dog</b>"] * 4).shares(2, "b", 9)
    for k, stage in enumerate(("01-s1", "02-s2")):
        run.progress(stage, steps=40 - k, tokens=1200, seconds=100, loss=0.25)
    write_page([run.root], tmp_path / "page.html")
    return tmp_path / "page.html"


def kept(page, name):
    """Keep a picture of the whole page in the folder that MCIT_SCREENSHOTS names, if it names one."""
    folder = os.environ.get("MCIT_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1000, 390])
def test_charts_are_drawn_without_a_word_on_the_console(browser, written, width, dark) -> None:
    page, said = opened(browser, written, width=width, dark=dark)
    assert said == []
    assert page.locator("#chart-accuracy svg path").count() > 3
    assert page.locator("#chart-forgetting svg").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#chart-time svg").count() == 1
    ink = page.locator("#chart-accuracy svg .role-axis-label text").first.evaluate("e => getComputedStyle(e).fill")
    assert ink == page.evaluate("getComputedStyle(document.body).color")
    kept(page, f"report-{'desktop' if width > 400 else 'phone'}{'-dark' if dark else ''}")
    page.close()


def test_the_first_screen_has_the_answer(browser, written) -> None:
    page, _ = opened(browser, written, width=390)
    big = page.locator("#first p.big")
    assert big.inner_text().startswith("animals lost 60.0 of 70.0 points") and big.bounding_box()["y"] < 900
    page.close()


def test_on_paper_charts_fit_and_nothing_is_folded(browser, written) -> None:
    """Printing makes the page narrower without telling the charts."""
    page, _ = opened(browser, written, dark=True)
    page.emulate_media(media="print")
    page.evaluate("document.querySelector('main').style.width = '500px'; dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details").count() > 1 and page.locator("details:not([open])").count() == 0
    assert max(box.bounding_box()["width"] for box in page.locator(".chart svg").all()) <= 500
    assert page.locator("img[loading]").count() == 0
    page.close()


def test_a_click_sorts_a_table_and_another_turns_it_round(browser, written) -> None:
    page, _ = opened(browser, written)
    table = page.locator("table.sortable", has=page.get_by_role("button", name="steps"))
    steps = table.locator("tbody td:nth-child(2)")
    table.get_by_role("button", name="steps").click()
    assert steps.all_inner_texts() == ["40", "39"]
    table.get_by_role("button", name="steps").click()
    assert steps.all_inner_texts() == ["39", "40"]
    page.close()


def test_numbers_with_their_intervals_stay_on_their_lines_and_sort_as_numbers(browser, written) -> None:
    page, _ = opened(browser, written, width=390)
    spans = page.locator("td .span")
    assert spans.count() > 3 and max(spans.nth(k).bounding_box()["height"] for k in range(spans.count())) < 25
    stages = page.locator("td.short", has_text="02-s2")
    assert max(stages.nth(k).evaluate("e => e.getClientRects().length") for k in range(stages.count())) == 1
    table = page.locator("table.sortable", has=page.get_by_role("button", name="success"))
    table.get_by_role("button", name="success").click()
    assert [text.split()[0] for text in table.locator("tbody td:nth-child(2)").all_inner_texts()] == ["0.900", "0.700"]
    page.close()


def test_a_point_of_the_chart_has_a_tooltip(browser, written) -> None:
    page, _ = opened(browser, written)
    page.locator("#chart-accuracy svg .mark-symbol path").first.hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    assert "animals" in page.locator("#vg-tooltip-element").inner_text()
    page.close()


def test_three_runs_side_by_side_open_in_two_seconds(browser, fake_run, tmp_path) -> None:
    tasks = ["kind", "edible", "naming", "lowvision"]
    runs = []
    for k, name in enumerate(("sequential", "replay", "sefe")):
        run = fake_run([[task] for task in tasks], name)
        for after in range(1, 5):
            for i, task in enumerate(tasks[:after]):
                run.shares(after, task, max(0, 54 - (12 - 5 * k) * (after - 1 - i)), n=60)
        runs.append(run.root)
    write_page(runs, tmp_path / "page.html")
    start = time.monotonic()
    page, said = opened(browser, tmp_path / "page.html")
    seconds = time.monotonic() - start
    assert said == [] and seconds < 2.0, f"{seconds:.2f} s"
    table = page.locator("table.sortable").first.inner_text()
    assert "+16.7" in table and " to " in table and "3 runs side by side" in page.locator("h1").inner_text()
    kept(page, "compare-desktop")
    page.close()
