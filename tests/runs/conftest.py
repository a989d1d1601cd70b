"""Disks are slow and do not matter to a process that is only killed: no flushing, and memory where there is some."""

import os
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def fast_path(tmp_path):
    """A temporary folder in memory, or `tmp_path` where that is not possible."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)
