"""Every error raised on purpose says where it is, what is wrong and what to do: read off the calls in every file."""

import ast
import importlib
import inspect
from pathlib import Path

import mcit
from mcit.core.errors import McitError

ROOT = Path(mcit.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if "_shipped" not in path.parts]
BASE = {"McitError", *(cls.__name__ for cls in vars(importlib.import_module("mcit.core.errors")).values()
        if inspect.isclass(cls) and issubclass(cls, McitError))}  # fmt: skip


def error_names(trees):
    """Names of McitError and of every class below it, wherever it is defined."""
    names, grown = set(BASE), True
    while grown:
        grown = False
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and node.name not in names:
                    if any(ast.unparse(base).rpartition(".")[2] in names for base in node.bases):
                        names.add(node.name)
                        grown = True
    return names


def lacking(call, order):
    """Which of where, what and fix a call does not give; an empty text counts as none."""
    if any(isinstance(arg, ast.Starred) for arg in call.args) or any(word.arg is None for word in call.keywords):
        return []  # a tuple or a mapping of them: what it holds is built by a call that is looked at itself
    given = dict(zip(order, call.args, strict=False)) | {word.arg: word.value for word in call.keywords}
    return [name for name in ("where", "what", "fix") if not _says(given.get(name))]


def _says(value):
    return value is not None and not (isinstance(value, ast.Constant) and value.value == "")


def is_note(call):
    """A note refuses nothing, and asks for nothing."""
    level = call.args[3] if len(call.args) > 3 else next((w.value for w in call.keywords if w.arg == "level"), None)
    return isinstance(level, ast.Constant) and level.value == "note"


def wrong_calls(tree, errors):
    out = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in errors:
            missing = lacking(node, ["what"])
        elif name == "Problem" and not is_note(node):
            missing = lacking(node, ["where", "what", "fix"])
        else:
            continue
        if missing:
            out.append(f"{node.lineno}: {name} without {', '.join(missing)}")
    return out


def test_every_error_and_problem_has_where_what_and_fix():
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    errors = error_names(trees.values())
    assert {"ConfigError", "NeedsDownload", "Interrupted"} <= errors
    wrong = [f"{path.relative_to(ROOT)}:{line}" for path, tree in trees.items() for line in wrong_calls(tree, errors)]
    assert not wrong, f"{len(wrong)} lack something:\n" + "\n".join(wrong)


def test_what_is_lacking_is_seen():
    tree = ast.parse(
        "DataError('x', where=w)\nDataError('x', where='', fix=f)\nProblem(w, 'x')\nProblem(w, 'x', '')\n"
        "Problem(w, 'x', f)\nProblem(w, 'x', level='note')\nDataError('x', where=w, fix=f)\nDataError.of(problems)\n"
        "Problem(w, *rest)\n"
    )
    assert [line.partition(":")[0] for line in wrong_calls(tree, {"DataError"})] == ["1", "2", "3", "4"]
