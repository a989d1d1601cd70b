from mcit.cli.log import Logged
from mcit.core.interfaces import Silent
from mcit.core.types import Progress


class Told:
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def progress(self, progress):
        self.lines.append(progress.done)


def test_what_was_told_before_the_file_is_known_is_in_it_and_a_second_start_appends(tmp_path, monkeypatch):
    monkeypatch.setattr(Logged, "EVERY_S", 1000.0)
    for _ in range(2):
        told = Told()
        log = Logged(told)
        log.doing("loading")
        log.line("run here\x1b[0m")
        log.open(tmp_path / "train.log")
        for done in range(1, 4):
            log.progress(Progress(1, 1, "a", "train", done, 3))
        log.close()
        assert told.lines == ["run here\x1b[0m", 1, 2, 3]
    lines = [line.partition(" ")[2] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert lines == 2 * ["loading", "run here\\x1b[0m", "stage 1 of 1 a train 1/3", "stage 1 of 1 a train 3/3"]


def test_a_file_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path):
    told = Told()
    log = Logged(told)
    log.open(tmp_path / "gone" / "train.log")
    log.line("a")
    log.line("b")
    assert told.lines[0] == "a" and told.lines[-1] == "b" and len(told.lines) == 3
    assert "is not written any more" in told.lines[1]


def test_a_view_gets_what_it_knows(tmp_path):
    log = Logged(Silent())
    log.watch(tmp_path)
    log.doing("x")
    log.close()
