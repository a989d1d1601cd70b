"""Rows at scale: what a pre-flight, a build and a stage's first steps take for a few rows and for many.

    python scripts/bench/rows.py [--rows 100000 1000000] [--part check build loop] [--layout lines|array] [--json FILE]

Each part runs in a process of its own; memory is the peak of its resident set, time is shown on the clock and as processor time
(on a busy machine only the latter says something). ``check`` is
``mcit data check`` without its printing: rows are decoded from JSON, checked, stored and compared (ids, overlap of training and
test by picture and question, boxes, cues). All rows share 200 small pictures, which are opened once each: time per picture is
another matter (scripts/bench/pictures.py). ``build`` writes the data folder. ``loop`` opens it and draws the rows of the first
steps of a stage, in the shuffled order of the run, and the longest rows for the rehearsal; tokens and models are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

_PICTURES = 200


def write_set(folder: Path, rows: int, *, layout: str) -> Path:
    """A recipe with so many training rows of about 700 bytes, and 1,000 test rows."""
    from PIL import Image

    (folder / "images").mkdir(parents=True, exist_ok=True)
    for k in range(_PICTURES):
        Image.new("RGB", (32, 24), (k, 255 - k, 90)).save(folder / "images" / f"{k}.png")
    text = "The picture was taken outside on a cloudy day, and several people walk along a street with shops. " * 4
    with open(folder / "train.json", "w") as out:
        out.write("[\n" if layout == "array" else "")
        for k in range(rows):
            turns = [
                {
                    "from": "human",
                    "value": f"<image>\n{text}What is number {k}?\nAnswer the question using a single word.",
                },
                {"from": "gpt", "value": f"word{k % 997}"},
            ]
            row = {"id": f"row-{k}", "image": f"{k % _PICTURES}.png", "conversations": turns}
            out.write(json.dumps(row) + (",\n" if layout == "array" and k + 1 < rows else "\n"))
        out.write("]\n" if layout == "array" else "")
    with open(folder / "test.json", "w") as out:
        for k in range(1_000):
            question = f"What is test {k}?\nAnswer the question using a single word."
            out.write(
                json.dumps({"question_id": k, "image": f"{k % _PICTURES}.png", "text": question, "answer": "a"}) + "\n"
            )
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "name: bench/rows\ntask: bench\nsources:\n"
        "  - {kind: llava, path: train.json, images: images, split: train, style: word}\n"
        "  - {kind: llava, path: test.json, images: images, split: test, style: word}\n"
    )
    return recipe


def run_part(part: str, recipe: Path, data: Path) -> dict[str, float]:
    """Seconds and peak memory of this process."""
    from mcit.data.build import build, check
    from mcit.data.recipe import load_recipe

    loaded = load_recipe(recipe)
    if part == "loop":
        import torch  # noqa: F401  what every training process has loaded anyway

        from mcit.data import streams  # noqa: F401
    began, busy = time.perf_counter(), time.process_time()
    if part == "check":
        report = check(loaded)
        if not report.ok or report.bad:
            sys.exit(f"the made-up rows are not clean: {report.bad[:3]}")
    elif part == "build":
        build(loaded, data_dir=data)
    else:
        _first_steps(build(loaded, data_dir=data))
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    # not `ru_maxrss`: a new process starts with its parent's
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"seconds": seconds, "cpu_s": busy, "peak_mb": int(status["VmHWM"].split()[0]) / 1024}


def _first_steps(folder: Path) -> None:
    from mcit.data.folder import DataFolder
    from mcit.data.rowset import longest
    from mcit.data.streams import Stream

    rows = DataFolder.open(folder).rows("train")
    longest(rows, 64)
    stream = Stream("task", rows, per_step=128, seed=1)
    for step in range(20):
        for position in stream.step(128 * step):
            stream.at(position)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--part", nargs="+", default=["check", "build", "loop"], choices=["check", "build", "loop"])
    parser.add_argument("--layout", default="lines", choices=["lines", "array"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("PART", "RECIPE", "DATA"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_part(args.one[0], Path(args.one[1]), Path(args.one[2]))))
        return
    results = []
    with tempfile.TemporaryDirectory(prefix="mcit-bench-") as home:
        for rows in args.rows:
            recipe = write_set(Path(home) / str(rows), rows, layout=args.layout)
            for part in args.part:
                command = [sys.executable, __file__, "--one", part, str(recipe), str(Path(home) / f"data-{rows}")]
                environment = {**os.environ, "MCIT_CACHE": str(Path(home) / "cache"), "OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                found = {"part": part, "rows": rows, **json.loads(done.stdout)}
                results.append(found)
                print(
                    f"{part:5} {rows:>9,} rows  {found['seconds']:7.1f} s, {found['cpu_s']:6.1f} s of a core "
                    f"({rows / found['cpu_s']:>9,.0f} rows/s)  peak {found['peak_mb']:6.0f} MB",
                    flush=True,
                )
    if args.json:
        args.json.write_text(
            json.dumps({"machine": platform.platform(), "layout": args.layout, "results": results}, indent=1)
        )


if __name__ == "__main__":
    main()
