"""Parts of documents that tests write: between ``<!-- NAME: written by tests -->`` and ``<!-- NAME: end -->``."""

import os


def _marks(name):
    return f"<!-- {name}: written by tests -->\n", f"\n<!-- {name}: end -->"


def block(path, name):
    """The text of a part as it stands."""
    start, end = _marks(name)
    text = path.read_text()
    return text[text.index(start) + len(start) : text.index(end)]


def written(path, name, content):
    """Replace the part if ``WRITE_DOCS`` is set."""
    if os.environ.get("WRITE_DOCS"):
        start, end = _marks(name)
        text = path.read_text()
        head, tail = text[: text.index(start) + len(start)], text[text.index(end) :]
        path.write_text(head + content + tail)
