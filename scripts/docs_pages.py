"""A hook of mkdocs: pages of the site that are made from the code, a page per method and the reference of the Python interface.

A method's page is its docstring (paper, equations, hooks, state, deviations), its settings, what a step costs, and the
preset with the paper's values. Nothing is written into ``docs/``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from mcit.core.config import MethodConfig
from mcit.methods.base import Method
from scripts.config_reference import row, texts

ROOT = Path(__file__).parent.parent
REFERENCE = {
    "Python interface": "mcit.api",
    "Errors": "mcit.core.errors",
    "Methods": "mcit.methods.base",
    "What methods see": "mcit.core.interfaces",
    "Nouns": "mcit.core.types",
    "Probes": "mcit.probes.base",
    "Routers": "mcit.routers.base",
    "Sequences": "mcit.sequences.base",
    "Filters": "mcit.evals.filters.base",
    "Scorers": "mcit.evals.scorers.base",
    "Row transforms": "mcit.data.transforms.base",
    "Contracts for packages outside": "mcit.testing",
}
"""Title to module of every page of the reference."""
_LABEL = re.compile(r"^([A-Z][\w ]{2,24}): ", re.MULTILINE)


def methods() -> dict[str, type[Method]]:
    """Every method of mcit by name, in order."""
    found = {}
    for path in sorted((ROOT / "mcit" / "methods").glob("*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.ClassDef) and node.name != "Method" for node in tree.body):
            module = importlib.import_module(f"mcit.methods.{path.stem}")
            for cls in vars(module).values():
                own = inspect.isclass(cls) and issubclass(cls, Method) and cls.__module__ == module.__name__
                if own and getattr(cls, "name", "") == path.stem:
                    found[path.stem] = cls
    return found


def method_page(name: str, cls: type[Method]) -> str:
    """A method's page in Markdown."""
    module = inspect.getmodule(cls)
    head, _, body = inspect.cleandoc((module and module.__doc__) or "").partition("\n")
    body = _LABEL.sub(lambda label: f"\n**{label[1]}**: ", _plain(body))
    config: type[MethodConfig] = cls.Config
    said = texts(config)
    rows = [row(key, field, said.get(key, "")) for key, field in config.model_fields.items()]
    table = ["| key | type | default | |", "|---|---|---|---|", *rows] if rows else ["None."]
    preset = ROOT / "configs" / "methods" / f"{name}.yaml"
    parts = [
        f"# {name}",
        _plain(head),
        body.strip(),
        "## Cost",
        cost(cls),
        "## Settings",
        _plain("\n".join(table)),
        *(
            ["## Preset", f"`{{use: {name}}}`", f"```yaml\n{preset.read_text().rstrip()}\n```"]
            if preset.is_file()
            else []
        ),
        "## Measured",
        "What was tried with it, and with what result, is in one place: [methods](../methods.md#measured-so-far).",
    ]
    return "\n\n".join(parts) + "\n"


def cost(cls: type[Method]) -> str:
    """What a step costs beside one without the method, as its hooks tell."""
    try:
        passes = cls(cls.Config()).step_passes
    except Exception:  # a setting without a default
        passes = 1.0
    parts = [
        f"{passes:g} forward and backward passes per row of a step."
        if passes != 1.0
        else "No pass beside the step's own."
    ]
    if cls.weight_penalty is not Method.weight_penalty:
        parts.append("A penalty over weights, once per step, one unit at a time.")
    if cls.loss_term is not Method.loss_term:
        parts.append("A term in the loss of each micro-batch.")
    if cls.streams is not Method.streams:
        parts.append("Rows of a stream of its own in each step; their number is a setting.")
    return " ".join(parts)


def _plain(text: str) -> str:
    """Docstring to Markdown: code in single backticks."""
    return text.replace("``", "`")


def reference_page(title: str, module: str) -> str:
    """A page for mkdocstrings."""
    return f"# {title}\n\n::: {module}\n"


def pages() -> dict[str, str]:
    """All generated pages by path below the docs."""
    out = {f"methods/{name}.md": method_page(name, cls) for name, cls in methods().items()}
    out |= {f"reference/{module}.md": reference_page(title, module) for title, module in REFERENCE.items()}
    return out


def on_config(config: Any) -> Any:
    """Put the pages into the navigation."""
    named = [{name: f"methods/{name}.md"} for name in methods()]
    for entry in config["nav"]:
        if "Methods" in entry:
            entry["Methods"] = [{"How methods work": entry["Methods"]}, *named]
    config["nav"].append({"Reference": [{title: f"reference/{module}.md"} for title, module in REFERENCE.items()]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
