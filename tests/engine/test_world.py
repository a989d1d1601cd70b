import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from mcit.engine import world


def test_one_process_is_rank_zero_of_one():
    assert (world.rank(), world.size()) == (0, 1)


def test_with_one_process_what_goes_in_comes_out(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    world.init(5.0)
    assert world.gather_objects({"a": 1}) == [{"a": 1}] and world.broadcast_object([2]) == [2]
    assert torch.equal(world.all_sum(torch.ones(2)), torch.ones(2))
    world.barrier()
    world.shutdown()
    assert (world.rank(), world.size()) == (0, 1)


TALK = """
import json, sys, torch
from mcit.engine import world
world.init(30.0, cpu=True)
rank = world.rank()
tensor = torch.tensor([1.0, 10.0]) * (rank + 1)
said = [
    world.gather_objects({"rank": rank, "text": "ü" * (5 * rank)}),
    world.broadcast_object({"from": rank}),
    world.broadcast_object(["from", rank], source=1),
    world.all_sum(tensor).tolist(),
    world.size(),
]
world.barrier()
world.shutdown()
print(json.dumps(said))
"""


@pytest.mark.distributed
def test_two_processes_exchange_objects_and_sums():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, **{name: str(value) for name, value in place.items()}}
        processes.append(subprocess.Popen([sys.executable, "-c", TALK], env=env, stdout=subprocess.PIPE, text=True))
    said = [json.loads(process.communicate(timeout=90)[0]) for process in processes]
    assert said[0] == said[1]
    gathered, first, second, total, size = said[0]
    assert gathered == [{"rank": 0, "text": ""}, {"rank": 1, "text": "üüüüü"}]
    assert first == {"from": 0} and second == ["from", 1] and total == [3.0, 30.0] and size == 2
