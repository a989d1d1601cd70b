"""README, tutorials and the page on serving, run as they stand: in one folder, in the order in which they are read."""

import pytest
from PIL import Image

from tests.fakes.pages import ROOT, agrees, blocks, commands, run_page

PAGES = ("first-run", "own-method", "resume-extend", "probes", "forget", "several-gpus", "paper")
RUN = {"first-run": 6, "own-method": 4, "resume-extend": 6, "probes": 1, "forget": 1, "several-gpus": 0, "paper": 0}


@pytest.fixture(scope="module")
def home(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("tutorials")
    Image.new("RGB", (64, 48), (200, 30, 30)).save(folder / "photo.png")
    return folder


@pytest.mark.slow
def test_every_page_is_true(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("COLUMNS", "120")
    for page in PAGES:
        assert run_page(ROOT / "docs" / "tutorials" / f"{page}.md") == RUN[page], page
    assert run_page(ROOT / "docs" / "serving.md") == 6

    def on_tiny(command):
        short = "tiny --set name=demo --set defaults.max_steps=2 --set eval.rows=4"
        return command.replace("configs/demo.yaml", short).replace("--stage 4", "--stage 3")

    (home / "readme").mkdir()
    monkeypatch.chdir(home / "readme")
    assert run_page(ROOT / "README.md", on_tiny) == 5


def test_every_page_is_run():
    assert {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")} == set(PAGES) == set(RUN)


def test_wrong_pages_are_seen():
    assert agrees("a 1 b  \nc\n", "a … b\nc") and not agrees("a 1 c\n", "a … b\n")
    text = "<!-- checked: by hand -->\n```bash\nx\n```\n\n  ```console\n  $ mcit a\n  out\n  ```\n"
    (bash, console) = blocks(text)
    assert bash == ("bash", None, "x\n", "by hand") and console[2] == "$ mcit a\nout\n" and console[3] is None
    assert list(commands(console[2])) == [("mcit a", "out\n")]
