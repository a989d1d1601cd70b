"""Size of a report's page, and how long Chromium takes from its address to the drawn chart.

    python scripts/bench/page.py PAGE.html [PAGE.html …] [--times 5]

One line per page: MB, seconds as median (lowest to highest), and what the browser's console said.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


def opened(pages: list[Path], times: int) -> list[tuple[float, list[float], list[str]]]:
    """MB, seconds of each opening and words on the console, by page; every opening is a tab of its own."""
    from playwright.sync_api import sync_playwright

    out = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        for path in pages:
            seconds: list[float] = []
            said: list[str] = []
            for _ in range(times):
                tab = browser.new_page(viewport={"width": 1000, "height": 900})
                tab.on("console", lambda message, said=said: said.append(message.text))
                tab.on("pageerror", lambda error, said=said: said.append(str(error)))
                start = time.monotonic()
                tab.goto(path.resolve().as_uri())
                tab.wait_for_selector("#chart-accuracy svg")
                seconds.append(time.monotonic() - start)
                tab.close()
            out.append((path.stat().st_size / 1e6, seconds, said))
        browser.close()
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args(argv)
    for path, (size, seconds, said) in zip(args.pages, opened(args.pages, args.times), strict=True):
        spread = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"{path}: {size:.2f} MB, {spread}, console: {said or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
