"""`mcit sweep` on the tiny sequence: what is equal is trained once, what is done is not done again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mcit.cli import sweep
from mcit.cli.main import main
from tests.fakes.jobs import environment

SETTINGS = ("defaults.max_steps=1", "eval.rows=2", "eval.base=false", "eval.max_new_tokens=2", "eval.batch=2")
FAST = [part for setting in SETTINGS for part in ("--set", setting)]


@pytest.fixture
def here(monkeypatch):
    """Runs in this process instead of one each; what was asked for."""
    asked = []

    def child(command):
        asked.append(command)
        return main(command)

    monkeypatch.setattr(sweep, "_child", child)
    return asked


@pytest.mark.slow
def test_orders_and_seeds_with_shared_beginnings_and_one_report(tmp_path, here, capsys):
    command = ["sweep", "tiny", *FAST, "--runs-dir", str(tmp_path), "--json"]
    assert main([*command, "--orders", "1,2,3", "letter,word,yesno", "--seeds", "1"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(run["order"], run["seed"]) for run in report["runs"]] == [
        (["letter", "yesno", "word"], 1),
        (["letter", "word", "yesno"], 1),
    ]
    assert report["missing"] == [] and report["metrics"]["mfn"]["n"] == 2 and len(report["orders"]) == 2
    assert report["final"].keys() == {"letter", "yesno", "word"}
    first, second = (tmp_path / run["run"] for run in report["runs"])
    stages = [sorted(p.name for p in (run / "stages").iterdir()) for run in (first, second)]
    assert stages == [["01-letter", "02-yesno", "03-word"], ["01-letter.json", "02-word", "03-yesno"]]
    assert here[0][-1] == "--new" and here[1][-4:] == ["--from", str(first), "--stage", "1"]
    before = {p: p.stat().st_mtime_ns for p in first.rglob("*.safetensors")}
    assert main([*command, "--seeds", "1", "2"]) == 0  # another sweep: the run of seed 1 is there
    more = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [run["run"] for run in more["runs"]][0] == first.name and more["metrics"]["mfn"]["n"] == 2
    assert all(p.stat().st_mtime_ns == t for p, t in before.items()) and len(list(tmp_path.glob("tiny-o*"))) == 3
    assert main(["report", report["sweep"]]) == 0
    out = capsys.readouterr().out
    assert "2 runs" in out and "By order" in out and main(["status", "--runs-dir", str(tmp_path)]) == 0


def test_a_run_that_fails_ends_the_sweep_with_its_code(tmp_path, monkeypatch):
    codes = iter([0, 75])
    monkeypatch.setattr(sweep, "_child", lambda command: next(codes))
    command = ["sweep", "tiny", "--runs-dir", str(tmp_path), "--seeds", "1", "2", "3"]
    assert main(command) == 75
    assert sorted(p.name for p in next(tmp_path.glob("tiny-sweep-*/configs")).iterdir()) == [
        "tiny-o1-2-3-s1.yaml",
        "tiny-o1-2-3-s2.yaml",
    ]


@pytest.mark.parametrize("options", [["--orders", "1,2"], ["--seeds", "1", "1"], ["--orders", "letter,word,x"]])
def test_what_cannot_be_swept_is_refused_before_anything_is_written(tmp_path, options, capsys):
    assert main(["sweep", "tiny", "--runs-dir", str(tmp_path), *options]) == 2
    assert "--" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_signal_is_handed_on_and_the_code_of_the_run_returned(monkeypatch):
    """With a process that ends with 75 when it is told to stop, as a run does after its checkpoint."""
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(75)); print(flush=True); time.sleep(60)"
    real = subprocess.Popen

    def started(command, **options):
        process = real([sys.executable, "-c", code], **{**options, "stdout": subprocess.PIPE})
        process.stdout.readline()
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        return process

    before = signal.signal(signal.SIGALRM, lambda *a: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(subprocess, "Popen", started)
    own = signal.getsignal(signal.SIGTERM)
    try:
        assert sweep._child(["run"]) == 75
    finally:
        signal.signal(signal.SIGALRM, before)
    assert signal.getsignal(signal.SIGTERM) == own


@pytest.mark.slow
def test_stopped_in_its_middle_the_same_command_continues(tmp_path, cache):
    command = [sys.executable, "-m", "mcit", "sweep", "tiny", *FAST, "--runs-dir", str(tmp_path), "--seeds", "1"]
    process = subprocess.Popen(command, env=environment(cache), stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "train" in line:
            process.terminate()
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    time.sleep(0.1)
    done = subprocess.run(command, env=environment(cache), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "1 runs" in done.stdout and len(list(tmp_path.glob("tiny-o*"))) == 1
