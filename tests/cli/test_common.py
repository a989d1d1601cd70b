import signal

import pytest
import torch

from mcit.cli.common import Lines, StopFlag, reporter, start_torch
from mcit.core.types import Progress


def test_lines_are_thinned_but_the_last_one_is_shown(capsys):
    out = Lines(every_s=1000.0)
    for done in range(1, 6):
        out.progress(Progress(1, 1, "a", "train", done, 5))
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and "5/5" in err[-1]


def test_what_begins_is_told_at_once_and_then_seldom(capsys):
    out = Lines(every_s=1000.0)
    out.doing("loading torch")
    out.doing("checking rows")
    assert capsys.readouterr().err == "loading torch …\n"


def test_a_rank_other_than_0_draws_no_view(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("RANK", "1")
    assert isinstance(reporter(), Lines)


def test_first_signal_asks_second_stops(monkeypatch):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = StopFlag()
        stop.install()
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_deterministic_kernels_do_not_write_every_new_tensor_first():
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.utils.deterministic.fill_uninitialized_memory = True
        start_torch()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
