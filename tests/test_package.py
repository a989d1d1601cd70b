"""The wheel: configs and recipes travel in it, and a command works from any folder without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_runs_from_any_folder(tmp_path, cache):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path / "w"),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (tmp_path / "w").glob("mcit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    shipped = {
        f"mcit/_shipped/{p.relative_to(ROOT)}" for k in ("configs", "data_recipes") for p in (ROOT / k).rglob("*.yaml")
    }
    assert shipped <= names
    assert {
        f"mcit/{p.relative_to(ROOT / 'mcit')}" for p in (ROOT / "mcit" / "assets").rglob("*") if p.is_file()
    } <= names
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "MCIT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, "-m", "mcit", "run", "tiny", "--set", "defaults.epochs=1", "--set", "eval.rows=4"]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import mcit; print(mcit.__file__)"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert str(tmp_path / "site") in where.stdout
    assert list((tmp_path / "runs").glob("tiny-*/report/report.json"))
