"""Run the engine checks on every rank of a job: ``python -m tests.fakes.engine_job KIND OFFLOAD FOLDER GIVEN [CHECK…]``."""

import functools
import json
import os
import sys
from pathlib import Path

import torch

from mcit.core.schema import EngineConfig
from mcit.engine import world
from mcit.engine.make import make_engine
from tests.fakes.engine_checks import run_all


def main():
    kind, offload, folder, given, *only = sys.argv[1:]
    torch.set_num_threads(1)
    world.init(120, cpu=True)
    make = functools.partial(make_engine, config=EngineConfig(kind=kind, offload=offload))
    results = run_all(make, folder, given, only, kind)
    Path(folder, f"results-{world.rank()}.json").write_text(json.dumps(results))
    if any("error" in found for found in results.values()):
        os._exit(1)  # the other rank may wait in a collective
    world.shutdown()


if __name__ == "__main__":
    main()
