import io

from rich.console import Console

from mcit.cli.live import Live, describe
from mcit.core.types import Progress


class View:
    """A live view into a text, with a clock by hand."""

    def __init__(self, width=80):
        self.now = 0.0
        self.out = io.StringIO()
        self.live = Live(Console(file=self.out, width=width, force_terminal=False), clock=lambda: self.now)

    def shown(self):
        console = Console(file=io.StringIO(), width=self.live._console.width)
        console.print(self.live.render())
        return console.file.getvalue().splitlines()


def test_progress_line():
    shown = describe(Progress(2, 4, "gqa", "train", 5, 10, 1.25, 1234.0, 65, 3700))
    assert shown == "stage 2 of 4 gqa train 5/10 loss 1.2500  1,234 tokens/s  stage left 1:05  all left 1:01:40"
    assert describe(Progress(0, 4, "gqa", "eval", 0, 10)) == "stage 0 of 4 gqa eval 0/10"


def test_there_is_one_bar_and_it_gives_way_when_its_steps_are_done():
    view = View()
    assert view.shown() == ["starting … 0:00"]
    view.live.doing("loading torch and transformers")
    view.now = 3.0
    assert view.shown() == ["loading torch and transformers … 0:03"]
    view.live.progress(Progress(1, 2, "kind", "train", 5, 10, 1.25, 1234.0, 65, 3700))
    bar, below = view.shown()
    assert bar == "stage 1 of 2 kind train ━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌ 5/10" and "all left 1:01:40" in below
    view.live.progress(Progress(1, 2, "kind", "train", 10, 10, 1.0))
    view.now = 9.0
    assert view.shown() == ["stage 1 of 2 kind train done, 10 of 10 … 0:06"]  # not a full bar that stands still
    view.live.progress(Progress(1, 2, "kind", "eval", 1, 4))
    assert len(view.shown()) == 2 and "eval" in view.shown()[0]
    view.live.close()


def test_the_matrix_fills_above_it_within_the_width(three):
    view = View(width=60)
    view.live.watch(three.root)
    view.live.doing("x" * 200)
    lines = view.shown()
    assert lines[0].split() == ["after", "a", "b", "c"] and "60.0" in lines[3] and len(lines) == 5
    assert max(map(len, lines)) <= 60
    three.shares(3, "a", 9)
    view.live.line("\x1b[31mafter-03/a: strict 90.0 %")
    assert "\x1b" not in view.out.getvalue() and "strict 90.0" in view.out.getvalue()
    view.live.close()
