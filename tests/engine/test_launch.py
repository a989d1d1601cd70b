"""What the environment and the config say about ranks, and what is refused before anything starts."""

import json
import os
import signal
import threading
import time

import pytest

from mcit.core.schema import RunConfig
from mcit.engine import launch
from mcit.engine.board import FOLDER, PARENT, Board
from mcit.engine.launch import Launch, Relay, cpu_cores, devices, launch_of, outcome_of, problems

ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "RANK": "0", "WORLD_SIZE": "2"}


def config(*, engine=None, batches=(8,), clip=1.0, dtype="fp32"):
    stages = [{"recipe": "tiny/letter", "optim": {"batch": b, "clip": clip}} for b in batches]
    base = {"family": "tiny", "dtype": dtype}
    return RunConfig.model_validate({"name": "x", "base": base, "engine": engine or {}, "stages": stages})


def told(*, nproc=None, env=None, **changes):
    return [f"{p.where} {p.what}" for p in problems(config(**changes), nproc=nproc, env=env or {})]


def test_a_place_is_what_the_launcher_says():
    assert launch_of({}) is None and launch_of({"RANK": "1"}) is None
    assert launch_of({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Launch(3, 8, 1)


def test_nothing_is_wrong_with_one_process_or_two():
    assert told() == [] and told(nproc=1) == []
    assert told(env={"RANK": "0", "WORLD_SIZE": "2"}) == []
    assert told(env={"RANK": "0", "WORLD_SIZE": "2"}, nproc=2, engine={"kind": "zero3", "offload": "parameters"}) == []
    assert told(engine={"kind": "zero2", "offload": "optimizer"}) == []


def test_more_processes_than_devices_name_both_numbers(monkeypatch):
    monkeypatch.setattr(launch, "devices", lambda engine: ("GPUs", 4))
    assert told(nproc=8, batches=(8,)) == ["--nproc 8 processes were asked for, this machine has 4 GPUs"]
    assert told(nproc=4) == []
    assert told(nproc=0) == ["--nproc is 0"]


def test_devices_of_a_machine_without_gpus_are_its_cores():
    assert devices(config(engine={"device": "cpu"}).engine) == ("CPU cores", cpu_cores())
    assert told(nproc=cpu_cores() + 1, engine={"device": "cpu"}, batches=(840,))


def test_batches_that_do_not_divide_name_the_stage_and_both_numbers():
    env = {"RANK": "0", "WORLD_SIZE": "4"}
    assert told(env=env, batches=(8, 6, 2)) == [
        "stages[1].optim.batch is 6 rows, which 4 ranks cannot share evenly",
        "stages[2].optim.batch is 2 rows, fewer than the 4 ranks that share a step",
    ]
    assert [p.fix for p in problems(config(batches=(6,)), nproc=None, env=env)] == ["use 4 or 8"]


def test_offload_needs_an_engine_that_can():
    assert told(engine={"offload": "optimizer"}) == ["engine.offload is optimizer, but engine.kind is plain"]
    (found,) = told(engine={"offload": "parameters", "kind": "zero2"})
    assert found.startswith("engine.offload is parameters, but engine.kind is zero2")


def test_a_launcher_that_started_fewer_or_others_is_named():
    assert told(nproc=3, env={"RANK": "0", "WORLD_SIZE": "2"}) == [
        "--nproc is 3, but the launcher started 2 processes (WORLD_SIZE)"
    ]
    (found,) = told(env={"WORLD_SIZE": "2"})
    assert found.startswith("WORLD_SIZE is set and RANK is not")
    (found,) = told(env={"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"})
    assert "accelerate launch was asked for several processes and started one" in found
    assert told(env={"ACCELERATE_MIXED_PRECISION": "no"}) == []


@pytest.mark.parametrize(
    ("env", "changes", "parts"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, ("use_deepspeed is true", "engine.kind", "plain")),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {"dtype": "bf16"}, ("mixed_precision is fp16", "base.dtype", "bf16")),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, ("mixed_precision is bf16", "base.dtype", "fp32")),
        ({"ACCELERATE_USE_CPU": "True"}, {"engine": {"device": "cuda"}}, ("use_cpu is true", "engine.device", "cuda")),
        ({"ACCELERATE_USE_FSDP": "true"}, {}, ("use_fsdp is true", "engine.kind", "plain")),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, {}, ("dynamo_backend is INDUCTOR",)),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
            {"engine": {"kind": "zero3"}},
            ("zero_stage is 2", "engine.kind", "zero3"),
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            {"engine": {"kind": "zero2"}},
            ("offload_optimizer_device is cpu", "engine.offload", "none"),
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_CLIPPING": "0.5"},
            {"engine": {"kind": "zero2"}},
            ("gradient_clipping is 0.5", "stages[0].optim.clip", "1.0"),
        ),
    ],
)
def test_an_accelerate_setting_that_contradicts_names_both_values(env, changes, parts, monkeypatch):
    if "cuda" in parts:
        monkeypatch.setattr(launch, "devices", lambda engine: ("GPUs", 2))
    (found,) = told(env={**ACCELERATE, **env}, **changes)
    assert all(part in found for part in parts), found


def test_accelerate_settings_that_agree_are_fine(tmp_path):
    assert told(env=ACCELERATE, dtype="bf16") == []  # "no" is what accelerate says when nobody said anything
    deepspeed = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
        "ACCELERATE_GRADIENT_CLIPPING": "1.0",
    }
    engine = {"kind": "zero3", "offload": "parameters"}
    assert told(env={**ACCELERATE, **deepspeed}, engine=engine) == []
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": "auto"}))
    env = {**ACCELERATE, **deepspeed, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    (found,) = told(env=env, engine=engine)
    assert "zero_stage is 2" in found and "zero3" in found
    for text in (b"[" * 100_000, b"\xff", b"[1]"):
        file.write_bytes(text)
        assert told(env=env, engine=engine) == []  # it is DeepSpeed's to refuse


# ---- how ranks ended -------------------------------------------------------------------------------------------------
def record(rank, *, kind="", exit=4):
    problems = [{"where": f"rank {rank}: a.json:3", "what": "is bad", "fix": "mend it"}]
    return {"rank": rank, "class": "DataError", "exit": exit, "problems": problems, "kind": kind}


def test_the_first_error_on_the_board_is_the_cause(tmp_path):
    Board(tmp_path, 1).post(record(1))
    Board(tmp_path, 0).post(record(0, kind="echo", exit=1))
    found = outcome_of({0: 1}, Board(tmp_path, 0))
    assert found.code == 4 and str(found.error) == "rank 1: a.json:3: is bad\n  mend it"


def test_a_killed_rank_is_the_cause_before_the_echo_of_its_loss(tmp_path):
    Board(tmp_path, 0).post(record(0, kind="echo", exit=1))
    found = outcome_of({1: -9}, Board(tmp_path, 0))
    assert found.code == 137 and "SIGKILL" in str(found.error) and "rank 1" in str(found.error)
    assert "run the same command again" in str(found.error)
    assert outcome_of({1: -9}, Board(tmp_path, 0), forced=True) == launch.Outcome(75, None)


def test_a_time_out_names_the_ranks_of_which_there_is_no_sign(tmp_path):
    for rank in range(3):
        Board(tmp_path, rank).sign_in()
    for rank in (0, 2):
        Board(tmp_path, rank).post(record(rank, kind="timeout", exit=1))
    assert "no sign of rank 1" in str(outcome_of({0: 1}, Board(tmp_path, 0)).error)


def test_a_rank_that_ends_without_a_word(tmp_path):
    found = outcome_of({0: -15, 1: 3}, Board(tmp_path, 0))
    assert found.code == 3 and "rank 1: ended with code 3" in str(found.error)


# ---- signals ---------------------------------------------------------------------------------------------------------
def finish_relays():
    """Wait for threads that pass on a signal: they must not outlive the fake that they send with."""
    for thread in threading.enumerate():
        if thread.name == "relay":
            thread.join(5)
            assert not thread.is_alive()


def test_a_signal_waits_for_rank_0_and_is_passed_on_once(tmp_path, monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(launch, "_send", lambda pid, number: sent.append((pid, number)))
    before = signal.getsignal(signal.SIGTERM)
    board = Board(tmp_path, 0)
    relay = Relay(board, says="stopping")
    with relay.installed():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert sent == [] and relay.signals == 1
        board.sign_in()
        Board(tmp_path, 1).sign_in()
        finish_relays()
        assert sent == [(os.getpid(), signal.SIGTERM)]
        signal.raise_signal(signal.SIGINT)
    assert sent[1:] == [(os.getpid(), signal.SIGKILL)] * 2 and relay.signals == 2
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == "stopping\n"


def test_a_second_signal_before_anybody_signed_in_ends_the_start(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(launch, "_send", lambda pid, number: sent.append(number))
    with Relay(Board(tmp_path, 0), says="").installed():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert sent == []
    Board(tmp_path, 0).sign_in()
    finish_relays()
    assert sent == [signal.SIGTERM]


def test_starting_leaves_no_environment_and_no_folder(monkeypatch):
    seen = {}

    def run(argv, nproc, board, relay):
        seen.update(folder=os.environ[FOLDER], parent=os.environ[PARENT], threads=os.environ["OMP_NUM_THREADS"])
        return launch.Outcome(0)

    monkeypatch.setattr(launch, "_run_agent", run)
    monkeypatch.setattr(launch, "cpu_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch.start_ranks(["run", "tiny"], 2) == launch.Outcome(0)
    assert seen["parent"] == str(os.getpid()) and seen["threads"] == "4"
    assert not os.path.exists(seen["folder"]) and not {FOLDER, PARENT, "OMP_NUM_THREADS"} & set(os.environ)


def test_a_device_that_is_not_there_unless_the_plan_is_for_another_machine(monkeypatch):
    monkeypatch.setattr(launch, "devices", lambda engine: ("CPU cores", 2))
    assert told(engine={"device": "cuda"}) == ["engine.device is cuda, but torch finds no GPU here"]
    for_others = config(engine={"device": "cuda"})
    assert problems(for_others, nproc=4, env={}, here=False) == []
    assert len(problems(for_others, nproc=4, env={})) == 1


def test_accelerates_cpu_contradicts_gpus_that_would_be_used(monkeypatch):
    env = {**ACCELERATE, "ACCELERATE_USE_CPU": "true"}
    assert told(env=env) == []
    monkeypatch.setattr(launch, "devices", lambda engine: ("GPUs", 2))
    assert told(env=env) == ["accelerate use_cpu is true, but engine.device of the run config is auto"]


def test_an_abort_may_be_a_time_out(tmp_path):
    found = outcome_of({1: -signal.SIGABRT}, Board(tmp_path, 0))
    assert found.code == 128 + signal.SIGABRT and "engine.timeout" in str(found.error)


def test_the_rank_that_ended_by_itself_is_the_cause_and_not_those_the_agent_ended(tmp_path):
    codes = {0: -signal.SIGTERM, 1: -signal.SIGSEGV}
    assert "rank 1" in str(outcome_of(codes, Board(tmp_path, 0)).error)
    assert outcome_of({0: -signal.SIGTERM, 1: -signal.SIGTERM}, Board(tmp_path, 0)).code == 128 + signal.SIGTERM
