"""The script that draws the charts."""

from mcit.core.paths import cache_dir
from mcit.report.page.bundle import script


def test_it_is_made_once_and_a_damaged_copy_is_made_again(monkeypatch) -> None:
    text = script()
    assert "vegaEmbed" in text and "</script" not in text and len(text) < 2e6
    (kept,) = (cache_dir() / "scripts").glob("vega-*.js")
    for file in (kept, kept.with_suffix(".sha256")):
        file.write_bytes(b"damaged \xff")
        assert script() == text == kept.read_text(encoding="utf-8")
    import vl_convert

    monkeypatch.setattr(vl_convert, "javascript_bundle", None)
    assert script() == text
