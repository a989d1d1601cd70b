"""The loader that a pool's export carries; what it answers is compared in test_pool.py."""

from pathlib import Path

from mcit.export import portable


def test_the_loader_is_short_and_plain():
    text = Path(portable.__file__).read_text()
    code = [line for line in text.split("\n") if line.strip()]
    assert len(code) < 60 and "mcit" not in text.replace("Needs no mcit", "")
