"""`mcit run` on several processes as a user starts it: same bytes, one message, no rank left behind, runs continue."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml

from mcit.cli import team
from mcit.cli.main import main
from mcit.core.errors import PlanError, StateError
from mcit.core.files import sha256_file
from mcit.core.tensorfile import load_tensors
from mcit.engine.board import FOLDER, Board
from mcit.runs.run import Run
from tests.fakes.ranks import on_ranks
from tests.fakes.run_dir import opened

REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIMIT_S = 120


def config(folder, *, how="never", timeout=600.0, engine=None, stages=1, **settings):
    """A short run on the tiny model with one method that can fail; returns the file."""
    path = folder / "short.yaml"
    content = {
        "name": "short",
        "seed": 1,
        "base": {"family": "tiny", "dtype": "fp32"},
        "engine": {"micro_batch": 4, "workers": 0, "timeout": timeout, **(engine or {})},
        "defaults": {
            "adapter": {"rank": 4, "alpha": 8, "also_train": ["projector"]},
            "optim": {"batch": 8, "lr": 1e-2},
            "max_steps": 6,
            "methods": [{"name": "tests.fakes.failing:Failing", "how": how, **settings}],
        },
        "stages": [{"recipe": recipe} for recipe in ("tiny/letter", "tiny/yesno")[:stages]],
        "eval": {"rows": 8, "batch": 2, "max_new_tokens": 3},
        "checkpoint": {"every": 2},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def environment(cache, **more):
    path = os.pathsep.join([REPO, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "MCIT_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def begin(*args, cache, **env):
    command = [sys.executable, "-m", "mcit", *map(str, args)]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(cache, **env), **given)


def mcit(*args, cache, **env):
    """Code, what it said, and seconds."""
    start = time.monotonic()
    process = begin(*args, cache=cache, **env)
    out, err = process.communicate(timeout=LIMIT_S)
    return SimpleNamespace(code=process.returncode, out=out, err=err, seconds=time.monotonic() - start)


def the_run(runs):
    (root,) = runs.glob("short-*")
    return Run(root)


def kept(run):
    """What must be equal in two runs."""
    wanted = [*run.layout.stages.glob("[0-9]*/adapter/*"), *(run.layout.root / "evals").rglob("predictions.jsonl")]
    return {str(p.relative_to(run.layout.root)): sha256_file(p) for p in sorted(wanted)}


# ---- without other processes -----------------------------------------------------------------------------------------
def test_what_cannot_work_is_refused_before_anything_starts(tmp_path, capsys, monkeypatch):
    path, many = str(config(tmp_path)), str(2 * os.cpu_count() + 1)
    monkeypatch.setattr(team.launch, "start_ranks", None)
    assert main(["run", path, "--nproc", many, "--set", "engine.device=cpu"]) == 3
    assert f"{many} processes were asked for" in capsys.readouterr().err
    assert main(["plan", path, "--set", "engine.offload=optimizer"]) == 3
    assert "engine.kind is plain" in capsys.readouterr().err
    assert main(["plan", path, "--nproc", "2", "--set", "defaults.optim.batch=7", "--json"]) == 3
    assert "7 rows, which 2 ranks cannot share" in json.loads(capsys.readouterr().out)["problems"][0]["what"]
    assert not (tmp_path / "runs").exists()


def test_the_ranks_code_and_error_are_those_of_the_command(tmp_path, capsys, monkeypatch):
    started = []

    def start_ranks(argv, nproc, *, says):
        started.append((list(argv), nproc))
        return team.launch.Outcome(5, StateError("is missing", where="rank 1: x.json"))

    monkeypatch.setattr(team.launch, "start_ranks", start_ranks)
    monkeypatch.setattr(team.launch, "devices", lambda engine: ("GPUs", 8))
    argv = ["run", str(config(tmp_path)), "--nproc", "2", "--json"]
    assert main(argv) == 5 and started == [(argv, 2)]
    assert json.loads(capsys.readouterr().out)["problems"][0]["where"] == "rank 1: x.json"


def test_ranks_with_other_plans_are_told_what_differs(monkeypatch):
    import mcit.cli.common
    import mcit.plan.record

    monkeypatch.setattr(mcit.cli.common, "environment", lambda: {"versions": {}})
    monkeypatch.setattr(mcit.plan.record, "plan_json", lambda plan: plan.content)

    def plan(rank):
        recipes = {"tiny/letter": "a" if rank < 2 else "b"}
        return SimpleNamespace(digest="d", content={"base_sha256": "0", "recipes": recipes, "stages": []})

    order = []

    def work(ranks):
        return team.same_plan(ranks, lambda: order.append(ranks.rank()) or plan(ranks.rank()))

    found = on_ranks(3, work)
    assert [type(error) for error in found] == [PlanError] * 3 and order[0] == 0
    assert {str(e).splitlines()[0] for e in found} == {
        "rank 2: has another plan than rank 0: recipe tiny/letter: a -> b"
    }
    assert [p.digest for p in on_ranks(2, work)] == ["d", "d"]


def test_rank_0_opens_the_run_for_all(tmp_path):
    made = []

    def work(ranks):
        run = team.same_run(ranks, lambda: made.append(ranks.rank()) or opened(tmp_path))
        run.ledger.append("problem", what="from every rank")
        return str(run.layout.root)

    first, second = on_ranks(2, work)
    assert first == second and made == [0]
    assert len(Run(first).ledger.events("problem")) == 1


def test_a_run_directory_that_other_nodes_do_not_see(tmp_path):
    """Rank 1 looks into a folder of its own: both are told, and nothing hangs."""

    def work(ranks):
        member = SimpleNamespace(ranks=ranks, place=SimpleNamespace(rank=ranks.rank()))
        team.Team.in_run(member, tmp_path / f"node-{ranks.rank()}")

    assert ["not on a file system that all nodes see" in str(e) for e in on_ranks(2, work)] == [True, True]


def test_an_error_is_told_where_the_board_cannot_be_written():
    def post(record):
        raise OSError("No space left on device")

    assert team.Team._post(SimpleNamespace(board=SimpleNamespace(post=post)), {}) is True
    assert team.Team._post(SimpleNamespace(board=None), {}) is True


def test_a_process_alone_is_no_team(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with team.joined(SimpleNamespace(timeout=1.0, device="cpu")) as ranks:
        assert ranks.size() == 1
    assert team.failed(StateError("x"), as_json=False) is None and not team.started_by_mcit()


# ---- two ranks -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    """Two stages on two ranks, from the first line to the last."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = config(folder, stages=2)
    done = mcit("run", path, "--nproc", "2", "--runs-dir", folder / "runs", cache=cache)
    assert done.code == 0, done.err
    return SimpleNamespace(folder=folder, path=path, done=done, run=the_run(folder / "runs"))


@pytest.mark.distributed
def test_a_run_on_two_ranks_speaks_once_and_leaves_no_log(undisturbed):
    run, done = undisturbed.run, undisturbed.done
    assert run.finished() and not run.layout.logs.exists()
    assert done.err.count("stage 1 of 2: letter") == 1 and done.out.count("run: ") == 1
    kinds = [event["event"] for event in run.ledger.events()]
    assert kinds.count("created") == 1 and kinds.count("stage_committed") == 2 and kinds.count("eval") == 2


@pytest.mark.distributed
def test_again_under_torchrun_ends_in_the_same_bytes(undisturbed, tmp_path, cache):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mcit"]
    command += ["run", str(undisturbed.path), "--runs-dir", str(tmp_path)]
    done = subprocess.run(command, env=environment(cache), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert kept(the_run(tmp_path)) == kept(undisturbed.run)
    assert done.stdout.count("run: ") == 1


@pytest.mark.distributed
def test_two_ranks_and_one_give_the_same_answers_to_the_same_weights(undisturbed, cache):
    run = undisturbed.run
    before = kept(run)
    for score in (run.layout.root / "evals").rglob("predictions.jsonl"):
        score.unlink()
    assert main(["eval", str(run.layout.root), "--json"]) == 0
    assert kept(run) == before


@pytest.mark.distributed
def test_an_error_of_one_rank_is_one_message_with_its_code_and_the_run_goes_on(tmp_path, cache):
    path, runs = config(tmp_path, how="error", once=str(tmp_path / "done")), tmp_path / "runs"
    failed = mcit("run", path, "--nproc", "2", "--runs-dir", runs, cache=cache)
    assert failed.code == 4, failed.err
    assert failed.err.endswith("rank 1: rows.jsonl:7:r7: this row is bad\n  mend it\n")
    assert failed.err.count("this row is bad") == 1 and "Traceback" not in failed.err and failed.seconds < 60
    log = (the_run(runs).layout.logs / "rank-001.log").read_text()
    assert "Traceback" in log and "this row is bad" in log
    again = mcit("resume", the_run(runs).layout.root, "--nproc", "2", cache=cache)
    assert again.code == 0, again.err
    assert the_run(runs).finished() and not the_run(runs).layout.logs.exists()


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["plain", "zero2"])
def test_a_rank_that_hangs_is_named_with_the_time_out(kind, tmp_path, cache):
    """Also where the others wait in a group that DeepSpeed made."""
    path = config(tmp_path, how="hang", timeout=20.0, engine={"kind": kind})
    failed = mcit("run", path, "--nproc", "2", "--runs-dir", tmp_path / "runs", cache=cache)
    assert failed.code == 1
    assert "engine.timeout = 20 s" in failed.err and "no sign of rank 1" in failed.err


@pytest.mark.distributed
def test_a_killed_rank_ends_all_and_the_run_ends_in_the_same_bytes(undisturbed, tmp_path, cache):
    runs = tmp_path / "runs"
    process = begin("run", undisturbed.path, "--nproc", "2", "--runs-dir", runs, cache=cache, **{FOLDER: str(tmp_path)})
    for line in process.stderr:
        if "train" in line:
            pids = Board(tmp_path, 0).pids()
            os.kill(pids[1], signal.SIGKILL)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137, err
    assert "rank 1: was killed by SIGKILL" in err and "run the same command again" in err
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    again = mcit("run", undisturbed.path, "--nproc", "2", "--runs-dir", runs, cache=cache)
    assert again.code == 0, again.err
    assert kept(the_run(runs)) == kept(undisturbed.run)


@pytest.mark.distributed
def test_sigterm_to_the_command_stops_all_ranks_after_a_step_and_the_run_goes_on(undisturbed, tmp_path, cache):
    runs = tmp_path / "runs"
    process = begin("run", undisturbed.path, "--nproc", "2", "--runs-dir", runs, cache=cache)
    for line in process.stderr:
        if "train" in line:
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert err.count("run the same command again") == 1 and "Traceback" not in err
    assert len(the_run(runs).ledger.events("interrupted")) == 1
    again = mcit("run", undisturbed.path, "--nproc", "2", "--runs-dir", runs, cache=cache)
    assert again.code == 0, again.err
    assert kept(the_run(runs)) == kept(undisturbed.run)


@pytest.mark.distributed
def test_accelerate_that_starts_one_process_of_two_is_an_error(tmp_path, cache):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "mcit"]
    command += ["run", str(config(tmp_path)), "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run(command, env=environment(cache), capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode != 0 and "was asked for several processes and started one" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.distributed
def test_accelerate_with_deepspeed_starts_two_ranks(undisturbed, tmp_path, cache):
    """accelerate's DeepSpeed settings only start the processes; the engine is ours, so one may start what another began."""
    path = config(tmp_path, stages=2, engine={"kind": "zero2"})
    command = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", "--zero_stage", "2"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "mcit", "run", str(path), "--runs-dir", str(tmp_path / "runs")]
    env = {k: v for k, v in environment(cache, DS_ACCELERATOR="cpu").items() if k != "ACCELERATE_USE_CPU"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    run = the_run(tmp_path / "runs")
    assert run.finished() and json.loads(run.layout.environment.read_text())["ranks"] == 2
    assert done.stdout.count("run: ") == 1 and run.layout.root.name == undisturbed.run.layout.root.name


@pytest.mark.distributed
def test_two_nodes_under_torchrun_make_one_run(undisturbed, tmp_path, cache):
    """Two agents with one process each, a run directory that both see: the bytes of two ranks under one agent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = []
    for node in range(2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node)]
        command += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
        command += ["-m", "mcit", "run", str(undisturbed.path), "--runs-dir", str(tmp_path / "runs")]
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        agents.append(subprocess.Popen(command, env=environment(cache), **given))
    said = [agent.communicate(timeout=LIMIT_S) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert kept(the_run(tmp_path / "runs")) == kept(undisturbed.run)
    assert sum(out.count("run: ") for out, _ in said) == 1


@pytest.mark.distributed
def test_an_export_of_a_zero3_run_is_whole(tmp_path, cache):
    """No empty tensor, and sizes and checksums of the written files are those that export.json says."""
    path = config(tmp_path, engine={"kind": "zero3"})
    done = mcit("run", path, "--nproc", "2", "--runs-dir", tmp_path / "runs", cache=cache)
    assert done.code == 0, done.err
    root = the_run(tmp_path / "runs").layout.root
    for kind in ("adapter", "merged"):
        out = tmp_path / kind
        made = mcit("export", root, "--stage", "1", "--as", kind, "--out", out, cache=cache)
        assert made.code == 0, made.err
        record = json.loads((out / "export.json").read_text())
        for name, known in record["files"].items():
            assert ((out / name).stat().st_size, sha256_file(out / name)) == (known["bytes"], known["sha256"])
        tensors = load_tensors(next(out.glob("*.safetensors")))
        assert len(tensors) > 20 and all(t.numel() > 0 and bool(t.isfinite().all()) for t in tensors.values())
