"""The table of families in docs/models.md: read, compared, or written cell by cell."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from filelock import FileLock

DOCS = Path(__file__).parents[3] / "docs" / "models.md"
START, END = "<!-- families: written by tests/models/test_families.py -->", "<!-- end of families -->"
TITLES = {
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "internvl": "InternVL (hf)",
    "smolvlm": "SmolVLM",
    "idefics3": "Idefics3",
    "gemma3": "Gemma 3",
    "paligemma": "PaliGemma",
    "mllama": "Mllama",
}
COLUMNS = (
    "prompt ids",
    "conversation ids",
    "several pictures",
    "answers",
    "padding",
    "generation",
    "packs",
    "vision cache",
    "LoRA",
    "projector",
    "plain",
    "DDP",
    "ZeRO-3",
    "exports",
)


def cell(family: str, column: str, value: str) -> None:
    """Check that the documentation says `value` of a family, or write it when ``MCIT_WRITE_DOCS`` is set."""
    with FileLock(Path(tempfile.gettempdir()) / "families.lock") if os.environ.get("MCIT_WRITE_DOCS") else _Nothing():
        cells = read()
        if os.environ.get("MCIT_WRITE_DOCS"):
            cells[family, column] = value
            _write(cells)
    assert cells.get((family, column)) == value, f"docs/models.md says {cells.get((family, column))!r}, not {value!r}"


def read() -> dict[tuple[str, str], str]:
    """Cells of the table by family and column."""
    block = DOCS.read_text().split(START)[1].split(END)[0]
    lines = [[item.strip() for item in line.strip("|").split("|")] for line in block.strip().splitlines()]
    if len(lines) < 3:
        return {}
    names = {title: name for name, title in TITLES.items()}
    return {
        (names[line[0]], column): text
        for line in lines[2:]
        for column, text in zip(lines[0][1:], line[1:], strict=True)
    }


def _write(cells: dict[tuple[str, str], str]) -> None:
    lines = ["| family | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, title in TITLES.items():
        lines.append(f"| {title} | " + " | ".join(cells.get((name, column), "-") for column in COLUMNS) + " |")
    before, rest = DOCS.read_text().split(START)
    DOCS.write_text(before + START + "\n\n" + "\n".join(lines) + "\n\n" + END + rest.split(END)[1])


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None
