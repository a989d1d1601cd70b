"""What it costs to know the pictures of a data set by content: the first start, a later one, and one with --trust-mtime.

``python scripts/bench/pictures.py --count 100000 --kilobytes 50``: writes so many files, hashes them as a start does in a
process of its own each time, and prints seconds. The file system's cache is warm: a slower disk adds its own reading time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_JOB = """
import sys, time
from pathlib import Path
from mcit.core.hashes import reading_all, sha256_files
files = sorted(Path(sys.argv[1]).iterdir())
start = time.perf_counter()
with reading_all(sys.argv[2] == "all"):
    count = sum(digest is not None for digest in sha256_files(files))
print(f"{count} {time.perf_counter() - start:.2f}")
"""


def main() -> None:
    """Write, hash, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--kilobytes", type=int, default=50)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mcit-bench-") as folder:
        root = Path(folder) / "pictures"
        root.mkdir()
        for k in range(args.count):
            (root / f"{k:07d}.jpg").write_bytes(os.urandom(args.kilobytes * 1000))
        time.sleep(3)  # files of the last seconds are not kept
        environment = {**os.environ, "MCIT_CACHE": str(Path(folder) / "cache")}
        print(f"{args.count} files of {args.kilobytes} kB")
        for label, mode in (("first start", "all"), ("later start", "all"), ("--trust-mtime", "kept")):
            seconds = []
            for _ in range(1 if label == "first start" else args.runs):
                command = [sys.executable, "-c", _JOB, str(root), mode]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                count, taken = done.stdout.split()
                if int(count) != args.count:
                    sys.exit(f"{count} files were hashed")
                seconds.append(taken)
            print(f"{label}: {', '.join(seconds)} s")


if __name__ == "__main__":
    main()
