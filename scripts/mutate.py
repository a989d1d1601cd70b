"""Seeded mutations of the code that must not be wrong, each of which the tests must catch.

    python scripts/mutate.py [--count 20] [--seed 0] [--json FILE]

A mutation swaps one comparison, arithmetic or boolean operator, number, or return value in a copy of the package; then the
tests that mirror the file (and the contract suite for methods) run against the copy. Exit 1 if any mutant survives.
Constants that a comment marks ``speed:`` change how fast a result comes and never the result; they are left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("mcit/runs", "mcit/data/encode.py", "mcit/methods", "mcit/evals")
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


def tests_for(path: Path) -> list[str]:
    """The mirrored test file or folder, and the suites that every file of its package is under."""
    relative = path.relative_to("mcit")
    mirrored = Path("tests") / relative.parent / f"test_{path.name}"
    found = [str(mirrored)] if (ROOT / mirrored).is_file() else [str(Path("tests") / relative.parent)]
    if relative.parts[0] == "methods":
        found.append("tests/contracts")
    if relative.parts[0] == "runs":
        found.append("tests/runs")
    if relative.parts[0] == "evals":
        found.append("tests/evals")
    return list(dict.fromkeys(found))


def run_mutant(path: Path, number: int, work: Path) -> tuple[bool, str, float]:
    """Write the mutant into `work`, run its tests; (caught, what was changed, seconds)."""
    source = (ROOT / path).read_text()
    tree = ast.parse(source)
    node, kind = sites(source, tree)[number]
    line = node.lineno  # type: ignore[attr-defined]
    what = f"{path}:{line} {kind}: {apply(node, kind)}"
    target = work / path
    target.write_text(ast.unparse(ast.fix_missing_locations(tree)))
    start = time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(work), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=240", *tests_for(path)]
    try:
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=900, check=False)
        caught = done.returncode not in (0, 5)
    except subprocess.TimeoutExpired:
        caught = True
    target.write_text(source)
    return caught, what, time.monotonic() - start


def main() -> int:
    """Draw, mutate, test, tell."""
    parser = argparse.ArgumentParser(description="mutate the code and see whether the tests notice")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    files = sorted(p for t in TARGETS for p in ([ROOT / t] if t.endswith(".py") else (ROOT / t).rglob("*.py")))
    texts = {path: path.read_text() for path in files}
    pool = [
        (path.relative_to(ROOT), number)
        for path, text in texts.items()
        for number in range(len(sites(text, ast.parse(text))))
    ]
    chosen = random.Random(args.seed).sample(pool, args.count)
    results = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for folder in ("mcit", "tests", "configs", "data_recipes", "scripts"):
            shutil.copytree(ROOT / folder, work / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / file, work / file)
        for i, (path, number) in enumerate(chosen, start=1):
            caught, what, seconds = run_mutant(path, number, work)
            results.append({"mutant": what, "caught": caught, "seconds": round(seconds, 1)})
            print(f"{i:>3} {'caught  ' if caught else 'SURVIVED'} {seconds:6.1f} s  {what}", flush=True)
    survived = [r for r in results if not r["caught"]]
    print(f"{len(results) - len(survived)} of {len(results)} mutants caught (seed {args.seed}, {len(pool)} places)")
    if args.json:
        args.json.write_text(json.dumps({"seed": args.seed, "places": len(pool), "results": results}, indent=1))
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
