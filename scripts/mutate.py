"""Seeded mutations of the code that must not be wrong, each of which the tests must catch.

    python scripts/mutate.py [--count 20] [--seed 0] [--json FILE] [--minutes M]
    python scripts/mutate.py --all [--within mcit/runs mcit/core/files.py:196- …] [--mirror-only]

A mutation swaps one comparison, arithmetic or boolean operator, number, or negation in a copy of the package; then the test
file that mirrors the module runs against the copy, and if that notices nothing the tests of its package (and the contract suite
for methods). Exit 1 if any mutant survives. `--all` tries every place instead of a draw; `--within` may name any file of the
package, also one that is not drawn from.
Constants that a comment marks ``speed:`` change how fast a result comes and never the result; they are left out. Mutants that
no test can catch are listed with the reason in `equivalent.py`; they are told and not run.

``--json`` appends a line per mutant. The same call goes on where an earlier one was stopped, by ``--minutes`` or by hand: a
mutant that the file says was caught, of a module that has not changed since, is counted and not run; a survivor is run again.

Each mutant's first tests run in a fork of this process, which has imported torch and transformers but nothing of mcit.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.equivalent import EQUIVALENT

sys.dont_write_bytecode = True

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "mcit/core/files.py",
    "mcit/core/hashes.py",
    "mcit/core/records.py",
    "mcit/core/stored.py",
    "mcit/data/encode.py",
    "mcit/data/pictures.py",
    "mcit/models/basefiles.py",
    "mcit/train/blobs.py",
    "mcit/train/loop.py",
)
TARGETS = (*FILES, "mcit/runs", "mcit/methods", "mcit/evals", "mcit/export")
SWAPS: dict[type, type] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def sites(source: str, tree: ast.AST) -> list[tuple[ast.AST, str]]:
    """Places that can be mutated: (node, kind), in source order; annotations and constants of speed are left out."""
    found: list[tuple[ast.AST, str]] = []
    fast = {number for number, line in enumerate(source.splitlines(), start=1) if "# speed: " in line}
    skip = {id(n) for node in ast.walk(tree) for n in annotations(node)}
    for node in ast.walk(tree):
        if id(node) in skip or getattr(node, "lineno", None) in fast:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            found.append((node, "compare"))
        elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
            found.append((node, "arithmetic"))
        elif isinstance(node, ast.BoolOp):
            found.append((node, "boolean"))
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            found.append((node, "number"))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            found.append((node, "not"))
    return sorted(found, key=lambda s: (s[0].lineno, s[0].col_offset))  # type: ignore[attr-defined]


def annotations(node: ast.AST) -> list[ast.AST]:
    """Nodes inside type annotations."""
    roots = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [inner for root in roots if isinstance(root, ast.AST) for inner in ast.walk(root)]


def apply(node: ast.AST, kind: str) -> str:
    """Change the node in place; returns what was done."""
    before = ast.unparse(node)
    if isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, (ast.BinOp, ast.BoolOp)):
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()
        node.operand = ast.Call(ast.Name("bool", ast.Load()), [node.operand], [])
    elif isinstance(node, ast.Constant):
        node.value = node.value + 1  # type: ignore[operator]
    return f"{before}  ->  {ast.unparse(node)}"


def is_in(path: Path, number: int, part: str) -> bool:
    """Whether a place is in a file or folder, or on lines of a file (``mcit/runs/run.py:12``, ``…:12-`` from there on)."""
    where, _, line = part.partition(":")
    if not path.is_relative_to(where):
        return False
    if not line:
        return True
    source = (ROOT / path).read_text()
    first, here = int(line.rstrip("-")), sites(source, ast.parse(source))[number][0].lineno  # type: ignore[attr-defined]
    return bool(here >= first if line.endswith("-") else here == first)


def files_of(parts: Sequence[str]) -> list[Path]:
    """Python files in or below these, relative to the repository. Exits for a name that is none."""
    found: set[Path] = set()
    for part in parts:
        path = ROOT / part.partition(":")[0]
        here = [path] if path.suffix == ".py" else list(path.rglob("*.py"))
        if not here or not all(p.is_file() for p in here):
            raise SystemExit(f"{part} names no Python file")
        found.update(p.relative_to(ROOT) for p in here)
    return sorted(found)


def mirror_of(path: Path) -> str:
    """The test file of a module, or the test folder of its package."""
    relative = path.relative_to("mcit")
    mirrored = Path("tests") / relative.parent / f"test_{path.name}"
    return str(mirrored) if (ROOT / mirrored).is_file() else str(Path("tests") / relative.parent)


def others_for(path: Path) -> list[str]:
    """The suites that every file of its package is under."""
    package = path.relative_to("mcit").parts[0]
    return {"methods": ["tests/contracts/test_methods.py"], "runs": ["tests/runs"], "evals": ["tests/evals"]}.get(
        package, []
    )


def names(path: Path) -> list[str]:
    """Every mutation of a file in the words of its line, which stay when lines move; equal ones on a line are numbered."""
    source, out = (ROOT / path).read_text(), list[str]()
    for node, kind in sites(source, ast.parse(source)):
        line = source.splitlines()[node.lineno - 1].strip()  # type: ignore[attr-defined]
        name, before = f"{path}: {line} | {apply(node, kind)}", out.copy()
        same = sum(one == name or one.startswith(f"{name} (") for one in before)
        out.append(f"{name} ({same + 1})" if same else name)
    return out


@contextmanager
def mutated(path: Path, number: int, work: Path) -> Iterator[str]:
    """The mutant in `work` for as long as the block lasts; gives what was changed."""
    source = (ROOT / path).read_text()
    tree = ast.parse(source)
    node, kind = sites(source, tree)[number]
    line = node.lineno  # type: ignore[attr-defined]
    what = f"{path}:{line} {kind}: {apply(node, kind)}"
    (work / path).write_text(ast.unparse(ast.fix_missing_locations(tree)))
    try:
        yield what
    finally:
        (work / path).write_text(source)


class LikelyFirst:
    """Order of the tests, as the first that fails ends the mutant: those that caught most mutants before, then those that need
    no folder, most of which train nothing."""

    def __init__(self, caught: Counter[str], told: Path) -> None:
        self._caught, self._told = caught, told

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Order the tests."""
        items.sort(key=lambda item: (-self._caught[item.nodeid], "tmp_path" in getattr(item, "fixturenames", ())))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Say which test failed."""
        if report.failed:
            self._told.write_text(report.nodeid)


CAUGHT: Counter[str] = Counter()
"""How many mutants each test has caught."""


def notices(tests: list[str], work: Path, *, limit: float = 900) -> bool:
    """Whether these tests fail on the package in `work`, or take too long; in a fork of this process."""
    told = work / "failed"
    told.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 1
        try:
            with open(os.devnull, "r+b") as nowhere:
                for stream in (0, 1, 2):
                    os.dup2(nowhere.fileno(), stream)
            os.chdir(work)
            os.environ |= {"PYTHONPATH": str(work), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
            sys.path.insert(0, str(work))
            import pytest

            given = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--timeout=240"]  # workers would import all anew
            code = pytest.main([*given, *tests], plugins=[LikelyFirst(CAUGHT, told)]) not in (0, 5)
        finally:  # whatever a mutant raises: the copy of the package is not this process's to remove
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            CAUGHT.update([told.read_text()] if told.exists() else [])
            return status != 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def caught_before(file: Path | None) -> set[tuple[str, str]]:
    """Mutants that a file says were caught: name, and checksum of the module's text. A line cut off by a kill is left out."""
    lines = file.read_text().splitlines(keepends=True) if file and file.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return {(one["name"], one["module"]) for one in found if one["caught"]}


def run_mutant(path: Path, number: int, work: Path, *, mirror_only: bool = False) -> tuple[bool, str, float]:
    """Write the mutant into `work`, run its tests; (caught, what was changed, seconds)."""
    start = time.monotonic()
    with mutated(path, number, work) as what:
        caught = notices([mirror_of(path)], work)
        if not caught and not mirror_only and others_for(path):
            caught = notices(others_for(path), work)
    return caught, what, time.monotonic() - start


def main() -> int:
    """Draw, mutate, test, tell."""
    parser = argparse.ArgumentParser(description="mutate the code and see whether the tests notice")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="add a line per mutant; those it has as caught are done"
    )
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many, however many mutants are left")
    parser.add_argument("--all", action="store_true", help="every place instead of a draw")
    parser.add_argument(
        "--within", nargs="+", default=[], metavar="PATH[:LINE]", help="only places in these files or folders, or lines"
    )
    parser.add_argument("--mirror-only", action="store_true", help="run no more than the mirrored test file")
    args = parser.parse_args()
    import hypothesis  # noqa: F401  (what forks shall find imported)
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    texts = {path: (ROOT / path).read_text() for path in files_of(args.within or TARGETS)}
    pool = [(path, number) for path, text in texts.items() for number in range(len(sites(text, ast.parse(text))))]
    inside = [place for place in pool if not args.within or any(is_in(*place, w) for w in args.within)]
    chosen = inside if args.all else random.Random(args.seed).sample(inside, min(args.count, len(inside)))
    results, equivalent, before = list[bool](), 0, caught_before(args.json)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for folder in ("mcit", "tests", "configs", "data_recipes", "scripts"):
            shutil.copytree(ROOT / folder, work / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / file, work / file)
        for i, (path, number) in enumerate(chosen, start=1):
            name, module = names(path)[number], hashlib.sha256(texts[path].encode()).hexdigest()[:16]
            if name in EQUIVALENT:
                print(f"{i:>3} equivalent          {name}: {EQUIVALENT[name]}", flush=True)
                equivalent += 1
                continue
            if (name, module) in before:
                results.append(True)
                continue
            if args.minutes and time.monotonic() - begin > 60 * args.minutes:
                print(f"stopped after {args.minutes:g} minutes: {len(chosen) - i + 1} places are left")
                break
            caught, what, seconds = run_mutant(path, number, work, mirror_only=args.mirror_only)
            results.append(caught)
            print(f"{i:>3} {'caught  ' if caught else 'SURVIVED'} {seconds:6.1f} s  {what}", flush=True)
            if args.json:
                line = {"name": name, "module": module, "mutant": what, "caught": caught, "seconds": round(seconds, 1)}
                with open(args.json, "a") as out:
                    out.write(json.dumps(line) + "\n")
    print(
        f"{sum(results)} of {len(results)} mutants caught, {equivalent} equivalent "
        f"(seed {args.seed}, {len(chosen)} of {len(pool)} places)"
    )
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
