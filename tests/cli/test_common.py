import signal

import pytest

from mcit.cli.common import Lines, StopFlag, describe
from mcit.core.types import Progress


def test_progress_line():
    shown = describe(Progress(2, 4, "gqa", "train", 5, 10, 1.25, 1234.0, 65, 3700))
    assert shown == "stage 2 of 4 gqa train 5/10 loss 1.2500  1,234 tokens/s  stage left 1:05  all left 1:01:40"
    assert describe(Progress(0, 4, "gqa", "eval", 0, 10)) == "stage 0 of 4 gqa eval 0/10"


def test_lines_are_thinned_but_the_last_one_is_shown(capsys):
    out = Lines(every_s=1000.0)
    for done in range(1, 6):
        out.progress(Progress(1, 1, "a", "train", done, 5))
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and "5/5" in err[-1]


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
