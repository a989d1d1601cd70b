"""Run folders of score files, made without a model."""

import pytest

from tests.fakes.score_run import FakeRun


@pytest.fixture
def fake_run(tmp_path):
    def make(stages, name="run", **kwargs):
        return FakeRun(tmp_path / name, stages, **kwargs)

    return make


@pytest.fixture
def three(fake_run):
    """Oracle T2 as counts of ten: rows [50], [70, 40], [60, 45 -> 50, 30]."""
    run = fake_run([["a"], ["b"], ["c"]])
    run.shares(1, "a", 5)
    run.shares(2, "a", 7).shares(2, "b", 4)
    run.shares(3, "a", 6).shares(3, "b", 5).shares(3, "c", 3)
    return run
