import json
import resource
import subprocess
import sys

from mcit.cli.main import main
from mcit.cli.status import watch
from tests.fakes.run_dir import opened, resolved, train, whole


def shown(capsys, *args):
    assert main(["status", *map(str, args)]) == 0
    return capsys.readouterr().out


def test_a_run_in_the_middle_of_its_second_stage(tmp_path, capsys):
    run = opened(tmp_path)
    train(run, "01-a")
    train(run, "02-b", until=3)
    out = shown(capsys, run.layout.root)
    assert "1 of 2 stages committed" in out
    assert "01-a: committed" in out and "02-b: started, checkpoint at step 2 of 5" in out
    assert "checkpoint stage=02-b step=2" in out
    found = json.loads(shown(capsys, run.layout.root, "--json"))
    assert found["stages"] == [
        {"folder": "01-a", "steps": 5, "committed": True, "live_step": None, "shared_from": None},
        {"folder": "02-b", "steps": 5, "committed": False, "live_step": 2, "shared_from": None},
    ]
    assert found["finished"] is False and found["writer"] is None
    assert found["events"][-1]["event"] == "checkpoint" and len(found["events"]) == 5


def test_the_writer_is_shown_while_it_writes(tmp_path, capsys):
    run = opened(tmp_path)
    with run.locked():
        assert "written by process" in shown(capsys, run.layout.root)
    assert "written by process" not in shown(capsys, run.layout.root)
    assert "01-a: not started" in shown(capsys, run.layout.root)


def test_all_runs_of_a_folder_a_damaged_one_too(tmp_path, capsys):
    whole(tmp_path)
    other = opened(tmp_path, resolved(seed=2))
    out = shown(capsys, "--runs-dir", tmp_path)
    assert "2 of 2 stages committed" in out and "0 of 2 stages committed" in out
    assert len(json.loads(shown(capsys, "--runs-dir", tmp_path, "--json"))["runs"]) == 2
    other.layout.plan.write_text("{")
    out = shown(capsys, "--runs-dir", tmp_path)
    assert "damaged" in out and "plan.json" in out and "2 of 2 stages committed" in out


def test_no_runs_and_no_such_run(tmp_path, capsys):
    assert "no runs" in shown(capsys, "--runs-dir", tmp_path / "none")
    assert main(["status", str(tmp_path / "none")]) == 5
    assert "no such folder" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "none"), "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["error"] == "StateError"


def test_it_needs_no_torch_and_is_quick(tmp_path):
    run = whole(tmp_path)
    code = (
        "import sys; from mcit.cli.main import main; code = main(['status', sys.argv[1]]); "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules); sys.exit(code)"
    )
    used = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, str(run.layout.root)], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(used) < 1.5  # processor time, about 0.4 s: other work on the machine does not count


def entry(folder, *, committed, step=None):
    return {"folder": folder, "steps": 40, "committed": committed, "live_step": step, "shared_from": None}


def seen(stages, events=()):
    finished = all(stage["committed"] for stage in stages)
    return [{"run": "runs/a", "finished": finished, "writer": None, "stages": stages, "events": list(events)}]


def test_watch_prints_what_changed_and_ends_when_all_is_done(capsys):
    looks = [
        seen([entry("01-a", committed=False)]),
        seen([entry("01-a", committed=False)]),
        seen([entry("01-a", committed=False, step=20)]),
        seen([entry("01-a", committed=True)]),
    ]
    slept = []
    watch(lambda: looks.pop(0), none="no runs", sleep=slept.append)
    lines = capsys.readouterr().out.splitlines()
    assert len(slept) == 3 and [line for line in lines if line.startswith("  ")] == [
        "  01-a: not started",
        "  01-a: started, checkpoint at step 20 of 40",
        "  01-a: committed",
    ]


def test_watch_ends_with_an_interrupt_and_does_not_go_with_json(tmp_path, capsys):
    def interrupted(seconds):
        raise KeyboardInterrupt

    watch(lambda: [], none="no runs in here", sleep=interrupted)
    assert capsys.readouterr().out == "no runs in here\n"
    assert main(["status", "--runs-dir", str(tmp_path), "--watch", "--json"]) == 2
    run = whole(tmp_path)
    assert main(["status", str(run.layout.root), "--watch"]) == 0  # finished: one look


def test_events_are_read_by_people(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    event = {"time": "2026-01-01T00:00:00+00:00", "event": "stage_committed", "stage": "01-a", "tasks": ["a", "b"],
             "sha256": "0123456789abcdef" * 4, "previous": "x"}  # fmt: skip
    watch(lambda: seen([entry("01-a", committed=True)], [event]), none="")
    assert capsys.readouterr().out.splitlines()[-1] == (
        "  2026-01-01 00:00:00 UTC stage committed stage=01-a tasks=a,b sha256=0123456789ab…"
    )


def test_many_stages_and_long_events_fit_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stages = [entry(f"{i:02d}-task", committed=i < 90) for i in range(1, 101)]
    looks = [
        seen(stages, [{"time": "2026-01-01T00:00:00+00:00", "event": "problem", "what": "word " * 40}]),
        seen([entry("01-a", committed=True)]),
    ]
    watch(lambda: looks.pop(0), none="", sleep=lambda s: None)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) < 12
    assert "  01-task … 89-task (89 stages): committed" in lines
