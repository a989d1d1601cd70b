"""Vega, Vega-Lite and Vega-Embed as one script, from vl-convert, made once and kept in the cache."""

from __future__ import annotations

from importlib.metadata import version

from mcit.core.files import sha256_bytes, write_text
from mcit.core.paths import cache_dir


def script() -> str:
    """The script, about 0.9 MB, safe inside a ``<script>`` element."""
    path = cache_dir() / "scripts" / f"vega-{version('vl-convert-python')}.js"
    mark = path.with_suffix(".sha256")
    if path.is_file() and mark.is_file():
        data = path.read_bytes()
        if sha256_bytes(data) == mark.read_text(errors="replace").strip():
            return data.decode()
    import vl_convert

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    write_text(path, text)
    write_text(mark, sha256_bytes(text.encode()) + "\n")
    return text
