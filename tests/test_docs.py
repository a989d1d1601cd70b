"""Every page of the documentation: links lead somewhere, commands are run or say what they were checked on, words are plain."""

import re
from pathlib import Path

import pytest

from tests.fakes.pages import ROOT, blocks

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
RUN = [ROOT / "README.md", ROOT / "docs" / "serving.md", *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(path):
    """Ids of a page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    wrong = []
    for link in LINK.findall(without_code(page.read_text())):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or not target.is_relative_to(ROOT):
            wrong.append(link)
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            wrong.append(link)
    assert not wrong, wrong


@pytest.mark.parametrize("page", RUN, ids=lambda p: p.name)
def test_commands_are_run_or_say_what_they_were_checked_on(page):
    """`tests/test_tutorials.py` runs console blocks; CI runs the two commands that install from the README."""
    for language, title, content, checked in blocks(page.read_text()):
        installs = page.name == "README.md" and content.startswith("pip install -c constraints.txt -e ")
        if checked is None and not title and not installs and language not in ("console", "python"):
            assert not re.search(r"^\$? ?(mcit|pip|python|vllm) ", content, flags=re.MULTILINE), content


def test_every_page_is_in_the_navigation():
    names = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert not [name for name in names if name not in (ROOT / "mkdocs.yml").read_text()]


def test_words_are_plain():
    for page in PAGES:
        assert not re.search(r"\b(mend|mends|mended)\b", without_code(page.read_text())), Path(page).name
