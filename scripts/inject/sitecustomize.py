"""Run by the interpreter at its start when this folder is on PYTHONPATH: wraps the process as ``FAULTPOINTS`` says.

With a key ``rank`` only that rank of a command on several processes is wrapped, and not what starts them; ``any`` is each of
them, with a note of its own.
"""

import json
import os
import sys

if "FAULTPOINTS" in os.environ:
    setting = json.loads(os.environ["FAULTPOINTS"])
    rank = os.environ.get("RANK")
    if rank is not None and setting.get("note"):
        setting["note"] += f".{rank}"
    if setting.get("rank") is None or rank == str(setting["rank"]) or setting["rank"] == "any" and rank is not None:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        import faultpoints

        faultpoints.installed(setting)
