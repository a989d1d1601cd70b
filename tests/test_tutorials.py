"""README, tutorials and the page on serving, run as they stand: in one folder, in the order in which they are read."""

import pytest
from PIL import Image

from tests.fakes.pages import ROOT, agrees, blocks, commands, expected, run_page

TUTORIALS = ROOT / "docs" / "tutorials"
RUN = {"first-run": 8, "resume-extend": 7, "probes": 6, "forget": 3, "several-gpus": 0, "paper": 0}
"""Commands and blocks that are run of each page."""
slow = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def home(tmp_path_factory, cache):
    """A folder in which the first page was run, with a picture."""
    folder = tmp_path_factory.mktemp("tutorials")
    Image.new("RGB", (64, 48), (200, 30, 30)).save(folder / "photo.png")
    with pytest.MonkeyPatch.context() as patch:
        _enter(patch, folder)
        patch.setenv("MCIT_CACHE", str(cache))
        assert run_page(TUTORIALS / "first-run.md") == RUN["first-run"]
    return folder


def _enter(patch, folder):
    folder.mkdir(exist_ok=True)
    patch.chdir(folder)
    patch.setenv("COLUMNS", "120")


@pytest.mark.parametrize("page", [pytest.param(page, marks=slow) for page in RUN if page != "first-run"])
def test_a_tutorial_is_true(home, monkeypatch, page):
    _enter(monkeypatch, home)
    assert run_page(TUTORIALS / f"{page}.md") == RUN[page]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_on_serving_is_true(home, monkeypatch):
    _enter(monkeypatch, home)
    assert run_page(ROOT / "docs" / "serving.md") == 6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readme_is_true_on_the_tiny_model(home, monkeypatch):
    _enter(monkeypatch, home / "readme")
    short = "tiny --set name=demo --set defaults.max_steps=2 --set eval.rows=4"
    given = {"configs/demo.yaml": short, "--stage 4": "--stage 3"}

    def on_tiny(command):
        for shown, run in given.items():
            command = command.replace(shown, run)
        return command

    assert run_page(ROOT / "README.md", on_tiny) == 5


def test_every_page_is_run():
    assert {path.stem for path in TUTORIALS.glob("*.md")} == set(RUN)


def test_wrong_pages_are_seen():
    assert agrees("a 1 b  \nc\n", "a … b\nc") and not agrees("a 1 c\n", "a … b\n")
    text = "<!-- checked: by hand -->\n```bash\nx\n```\n\n  ```console\n  $ mcit a\n  out\n  ```\n"
    (bash, console) = blocks(text)
    assert bash == ("bash", None, "x\n", "by hand") and console[2] == "$ mcit a\nout\n" and console[3] is None
    assert list(commands(console[2])) == [("mcit a", "out\n")]
    assert (expected("mcit run a  # ends with exit code 6"), expected("mcit run a")) == (6, 0)
