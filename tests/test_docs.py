"""Every page of the documentation: links lead somewhere, commands are run or say what they were checked on, words are plain."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from mcit.cli.main import VERBS, parser
from mcit.plan.plan import read_config
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


def wrong_commands(text, takes):
    """Lines of fenced blocks that the command line would refuse; verbs and scripts in sentences that do not exist."""
    wrong = []
    for language, _, content, _ in blocks(text):
        if language in ("", "console", "bash"):
            for line in content.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ")
                if re.match(r"mcit [\w-]", line) and not _taken(line, takes):
                    wrong.append(line)
    wrong += [f"mcit {verb}" for verb in re.findall(r"`mcit (\w+)", text) if verb not in VERBS]
    for name, rest in re.findall(r"(?<![\w/])(scripts/[\w/]+\.py)([^`\n]*)", text):
        content = (ROOT / name).read_text() if (ROOT / name).is_file() else ""
        flags = re.findall(r"(?<!\S)--[a-z][\w-]+", rest.partition("#")[0])
        wrong += [f"{name} {flag}".strip() for flag in flags or [""] if not content or flag not in content]
    return wrong


def _taken(line, takes):
    """Whether the arguments parse; K stands for the number of a stage, and what follows a pipe or && is not ours."""
    words = shlex.split(re.sub(r"\bK\b", "1", line), comments=True)
    ends = [words.index(cut) for cut in ("&&", "|", ">") if cut in words]
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            takes.parse_args(words[1 : min(ends, default=None)])
        except SystemExit:
            return False
    return True


def test_every_command_on_every_page_is_one_that_there_is():
    takes = parser()
    wrong = {page.name: lines for page in PAGES if (lines := wrong_commands(page.read_text(), takes))}
    assert not wrong, wrong
    text = "`mcit plant`\n`scripts/nothing.py`\n`scripts/faults.py --round 2 --never`\n"
    text += "```\nmcit run a --nprok 2\nmcit run a \\\n --nproc 2 && x\n```\n"
    assert wrong_commands(text, takes) == [
        "mcit run a --nprok 2", "mcit plant", "scripts/nothing.py", "scripts/faults.py --never",
    ]  # fmt: skip


def test_the_config_in_the_readme_is_one(tmp_path):
    """With recipes that are at hand in the place of the reader's."""
    (shown,) = [content for language, _, content, _ in blocks((ROOT / "README.md").read_text()) if language == "yaml"]
    names = iter(["tiny/letter", "tiny/yesno"])
    (tmp_path / "mine.yaml").write_text(re.sub(r"recipes/\w+\.yaml", lambda _: next(names), shown))
    config = read_config(str(tmp_path / "mine.yaml"), [])[0]
    assert len(config.stages) == 2 and next(names, None) is None


def test_every_page_is_in_the_navigation():
    names = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert not [name for name in names if name not in (ROOT / "mkdocs.yml").read_text()]


def test_words_are_plain():
    for page in PAGES:
        assert not re.search(r"\b(mend|mends|mended)\b", without_code(page.read_text())), Path(page).name
