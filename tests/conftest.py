"""Every test runs offline, in a cache of its own, on one thread setting, and leaves no environment behind."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many test processes as cores: one thread each

import pytest

_REAL_CACHE = os.environ.get("MCIT_CACHE")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache folder for the whole test session, so that the tiny model and its data are built once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(request, monkeypatch, cache):
    """Tests never touch the user's cache; those marked `embedded` use it, to not download twice."""
    if request.node.get_closest_marker("embedded"):
        if _REAL_CACHE:
            monkeypatch.setenv("MCIT_CACHE", _REAL_CACHE)
        return
    monkeypatch.setenv("MCIT_CACHE", str(cache))


@pytest.fixture(scope="session")
def forgetful(tmp_path_factory, cache):
    """A run that learns, forgets a colour and learns again, with the forgetting kit; only read it, or add beside it."""
    from tests.fakes.forgetful import forgetful_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        return forgetful_run(tmp_path_factory.mktemp("forgetful"))
