"""Copies configs/ and data_recipes/ into the built package; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithShipped(build_py):
    """build_py that also puts the top-level YAML folders below ``mcit/_shipped``."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if self.editable_mode:
            return
        for kind in ("configs", "data_recipes"):
            target = Path(self.build_lib) / "mcit" / "_shipped" / kind
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(__file__).parent / kind, target)


setup(cmdclass={"build_py": BuildWithShipped})
