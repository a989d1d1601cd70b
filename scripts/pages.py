"""Tables of the studies, written into the documentation."""

from __future__ import annotations

import re
from pathlib import Path


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Put a text between two marks of a page. Raises SystemExit for a page that does not have them once."""
    start, end = marks
    place = f"{re.escape(start)}.*?{re.escape(end)}"
    new, count = re.subn(place, lambda _: f"{start}\n{text}\n{end}", page.read_text(), flags=re.S)
    if count != 1:
        raise SystemExit(f"{page} has no place for the table: {start} … {end}")
    page.write_text(new)
