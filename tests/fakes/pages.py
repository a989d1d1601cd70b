"""Pages of the documentation that are run: files with a title written, commands and Python blocks executed, output compared."""

import contextlib
import glob
import io
import re
import shlex
from pathlib import Path

from mcit.cli.main import main

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r'^( *)```(\w*)(?: title="([^"]+)")?\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
CHECKED = re.compile(r"<!-- checked: (.+?) -->\s*$")


def blocks(text):
    """(language, title, content, why it is not run or None) of every fenced block."""
    for match in BLOCK.finditer(text):
        note = CHECKED.search(text[: match.start()])
        indent = match[1]
        content = "".join(line.removeprefix(indent) for line in match[4].splitlines(keepends=True))
        yield match[2], match[3], content, note[1] if note else None


def agrees(printed, shown):
    """Equal, with anything for an ellipsis; trailing blanks do not count."""
    printed, shown = ("\n".join(map(str.rstrip, text.strip().splitlines())) for text in (printed, shown))
    return re.fullmatch(".*?".join(map(re.escape, shown.split("…"))), printed, re.DOTALL) is not None


def commands(text):
    """Each command with what the page shows after it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def arguments(command):
    """Words of a command after ``mcit``, paths with a star filled in as a shell does."""
    words = shlex.split(command, comments=True)
    assert words[0] == "mcit", command
    return [name for word in words[1:] for name in (sorted(glob.glob(word)) or [word] if "*" in word else [word])]


def called(command):
    """Exit code and all output of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(arguments(command))
    return code, out.getvalue()


def expected(command):
    """Exit code that a page announces in a comment; 0 where it says nothing."""
    said = re.search(r"# ends with exit code (\d+)", command)
    return int(said[1]) if said else 0


def run_page(path, replace=lambda command: command):
    """Run a page in the current folder; returns how many commands and Python blocks were run."""
    done, names = 0, {}
    for language, title, content, checked in blocks(path.read_text()):
        if checked is not None:
            continue
        if title:
            Path(title).write_text(content)
        elif language == "python":
            exec(compile(content, f"{path.name} block", "exec"), names)
            done += 1
        elif language == "console":
            for command, shown in commands(content):
                code, printed = called(replace(command))
                assert code == expected(command), f"{path.name}: {command}\n{printed}"
                assert not shown.strip() or agrees(printed, shown), f"{path.name}: {command}\n{printed}"
                done += 1
    return done
