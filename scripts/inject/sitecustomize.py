"""Run by the interpreter at its start when this folder is on PYTHONPATH: wraps the process as ``FAULTPOINTS`` says.

With a key ``rank`` only that rank of a command on several processes is wrapped, and not what starts them.
"""

import json
import os
import sys

if "FAULTPOINTS" in os.environ:
    setting = json.loads(os.environ["FAULTPOINTS"])
    if setting.get("rank") is None or os.environ.get("RANK") == str(setting["rank"]):
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        import faultpoints

        faultpoints.installed(setting)
