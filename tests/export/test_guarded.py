import ast
from pathlib import Path

from mcit.analytic import detector
from mcit.evals import guarding
from mcit.export import guarded


def test_files_of_an_export_need_no_mcit():
    for module in (guarded, guarding, detector):
        tree = ast.parse(Path(module.__file__).read_text())
        names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        names += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
        assert not [name for name in names if name.split(".")[0] == "mcit"], module.__name__
