"""`mcit doctor --selftest` as a user starts it."""

import json
import os
import subprocess
import sys

import pytest

from mcit.cli import doctor
from mcit.cli.main import main
from mcit.core.errors import Interrupted, TrainingError
from mcit.engine import launch
from mcit.engine.gradients import LocalGradients
from mcit.selftest import selftest
from mcit.selftest.selftest import Outcome

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture
def short(monkeypatch):
    """Two checks only."""
    monkeypatch.setattr(selftest, "CHECKS", ("window", "penalty"))


def test_everything_passes(short, tmp_path, capsys):
    assert main(["doctor", "--selftest", "--runs-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "versions.torch" in out and "penalty" in out and "self-test passed (plain " in out
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_ignores_edits_is_named(short, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(LocalGradients, "replace", lambda *args: None)
    assert main(["doctor", "--selftest", "--json", "--runs-dir", str(tmp_path)]) == 3
    captured = capsys.readouterr()
    found = json.loads(captured.out)["selftest"]
    assert not found["passed"] and [(c["check"], c["passed"]) for c in found["checks"]] == [
        ("window", False),
        ("penalty", True),
    ]
    assert "plain window: FAILED" in captured.err


def test_ranks_that_die_fail_one_check_and_new_ones_do_the_rest(short, tmp_path, capsys, monkeypatch):
    starts = []

    def start_ranks(argv, nproc, *, says):
        folder = doctor.Path(argv[argv.index("--job") + 1])
        listed = json.loads((folder / "work.json").read_text())["items"]
        starts.append(listed)
        for engine, check in listed:
            if (engine, check) == ("zero2", "window"):
                return launch.Outcome(137, TrainingError("was killed by SIGKILL", where="rank 1"))
            for rank in range(nproc):
                made = Outcome(engine, check, True, 1e-7, "w", 1.0)
                path = folder / "outcomes" / f"{engine}-{check}-rank-{rank:03d}.json"
                selftest.write_json(path, selftest.asdict(made))
        return launch.Outcome(0)

    monkeypatch.setattr(launch, "start_ranks", start_ranks)
    monkeypatch.setattr(launch, "devices", lambda engine: ("GPUs", 8))
    assert main(["doctor", "--selftest", "--nproc", "2", "--json", "--runs-dir", str(tmp_path)]) == 3
    checks = json.loads(capsys.readouterr().out)["selftest"]["checks"]
    assert len(starts) == 2 and starts[1][0] == ["zero2", "penalty"] and len(starts[1]) == 3
    failed = [c for c in checks if not c["passed"]]
    assert len(checks) == 8 and len(failed) == 1
    assert (failed[0]["engine"], failed[0]["check"]) == ("zero2", "window")
    assert failed[0]["what"] == "rank 1: was killed by SIGKILL"


def test_a_signal_ends_it(short, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "start_ranks", lambda *args, **more: launch.Outcome(Interrupted.exit_code))
    monkeypatch.setattr(launch, "devices", lambda engine: ("GPUs", 8))
    assert main(["doctor", "--selftest", "--nproc", "2", "--runs-dir", str(tmp_path)]) == 75
    assert list(tmp_path.iterdir()) == []


def test_more_ranks_than_devices_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launch, "devices", lambda engine: ("GPUs", 1))
    assert main(["doctor", "--selftest", "--nproc", "2", "--runs-dir", str(tmp_path)]) == 3
    assert "this machine has 1 GPUs" in capsys.readouterr().err


@pytest.mark.distributed
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ["plain", "zero3"])
def test_two_ranks_pass(engine, tmp_path, cache):
    command = [sys.executable, "-m", "mcit", "doctor", "--selftest", "--nproc", "2", "--engine", engine]
    command += ["--limit", "900", "--json", "--runs-dir", str(tmp_path)]
    path = os.pathsep.join([REPO, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "MCIT_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(done.stdout)["selftest"]
    assert found["passed"] and [c["check"] for c in found["checks"]] == list(selftest.CHECKS)
    assert list(tmp_path.iterdir()) == []
