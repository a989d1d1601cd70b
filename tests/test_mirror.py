"""`tests/` mirrors `mcit/`: every module with code has a test file of its name in the same place."""

from pathlib import Path

import mcit

ROOT = Path(mcit.__file__).parent
TESTS = Path(__file__).parent
ELSEWHERE = {
    f"cli/{verb}.py"
    for verb in ("audit", "chat", "doctor", "eval", "export", "forget", "plan", "promote", "reject", "resume")
}
"""Thin verbs, tested as a user starts them in test_main.py, test_run.py, tests/export and tests/train."""
PROTOCOLS = {"core/interfaces.py", "engine/base.py"}
"""Signatures only; nothing runs in them."""


def test_the_mirror_has_no_hole():
    holes = []
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if path.name.startswith("__") or "_shipped" in relative.parts or str(relative) in PROTOCOLS | ELSEWHERE:
            continue
        if not (TESTS / relative.parent / f"test_{path.name}").is_file():
            holes.append(str(relative))
    assert not holes, f"no test file for {holes}"
