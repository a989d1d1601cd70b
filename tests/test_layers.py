"""The layer line of the architecture, read off the imports of every file, those inside functions included."""

import ast
from pathlib import Path

import mcit

ROOT = Path(mcit.__file__).parent
ORDER = [
    {"cli"},
    {"selftest"},
    {"train", "export", "report"},
    {"plan"},
    {"methods", "evals", "sequences", "probes", "routers", "memory"},
    {"engine", "models", "data", "runs", "analytic"},
    {"core"},
]
LEVEL = {package: i for i, packages in enumerate(ORDER) for package in packages}
TORCH = {"torch", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes"}
ENGINE_ONLY = {"accelerate", "deepspeed"}


def imports(path: Path) -> list[tuple[str, bool, int]]:
    """(module, whether at module level and not for type checking, line) of every import."""
    tree = ast.parse(path.read_text())
    top = set()
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            top.add(id(node))
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out += [(alias.name, id(node) in top, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} relative import"
            out.append((node.module or "", id(node) in top, node.lineno))
            out += [(f"{node.module}.{alias.name}", id(node) in top, node.lineno) for alias in node.names]
    return out


def files() -> list[Path]:
    return [p for p in sorted(ROOT.rglob("*.py")) if "_shipped" not in p.parts]


def layer(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def test_imports_go_to_the_right_only():
    wrong = []
    for path in files():
        mine = layer(path)
        if not mine:
            continue
        for module, _, line in imports(path):
            parts = module.split(".")
            if parts[0] != "mcit" or len(parts) < 2 or parts[1] not in LEVEL or parts[1] == mine:
                continue
            if LEVEL[parts[1]] <= LEVEL[mine]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_methods_import_only_torch_core_methods_and_analytic():
    wrong = []
    for path in (ROOT / "methods").rglob("*.py"):
        for module, _, line in imports(path):
            parts = module.split(".")
            if parts[0] == "mcit" and len(parts) > 1 and parts[1] not in {"core", "methods", "analytic"}:
                wrong.append(f"{path.name}:{line} {module}")
            if parts[0] in TORCH - {"torch"}:
                wrong.append(f"{path.name}:{line} {module}")
    assert not wrong, "\n".join(wrong)


def test_core_runs_report_do_not_import_torch():
    wrong = []
    for path in files():
        if layer(path) in {"core", "runs", "report"}:
            for module, _, line in imports(path):
                if module.split(".")[0] in TORCH and not _type_checking(path, line):
                    wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def _type_checking(path: Path, line: int) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            if node.lineno < line <= (node.end_lineno or line):
                return True
    return False


def test_accelerate_and_deepspeed_only_in_engine():
    for path in files():
        if layer(path) != "engine":
            for module, _, line in imports(path):
                assert module.split(".")[0] not in ENGINE_ONLY, f"{path}:{line}"


def test_no_pickle_no_assert_no_unsafe_load():
    for path in files():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno} assert"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "pickle.load", "pickle.loads"}:
                text = ast.unparse(node)
                assert "weights_only=True" in text, f"{path}:{node.lineno} {text}"
        for module, _, line in imports(path):
            assert module.split(".")[0] not in {"pickle", "dill", "joblib"}, f"{path}:{line}"
