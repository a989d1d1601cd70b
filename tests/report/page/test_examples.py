"""Rows that a report shows."""

from PIL import Image

from mcit.report.matrix import measure
from mcit.report.page import examples as module
from mcit.report.page.examples import examples, shown


def test_rows_that_changed_come_first_with_all_their_answers(fake_run) -> None:
    """Rows 5 and 6 of ten go from right to wrong; the others never change."""
    run = fake_run([["a"], ["b"]]).shares(1, "a", 7).shares(2, "a", 5).shares(2, "b", 1)
    rows = examples(run.root, measure(run.root), "strict", per_task=3)["a"]
    assert [row["id"] for row in rows] == ["a-0", "a-5", "a-6"]
    assert rows[1]["answers"] == [
        {"after": "01-s1", "text": "cat", "right": True},
        {"after": "02-s2", "text": "dog", "right": False},
    ]
    assert rows[0]["picture"] is None and rows[0]["gold"] == "cat"


def test_long_and_hostile_texts_are_made_visible() -> None:
    text = shown("a\u202eb\x1b[31mc\n" + "x" * 100_000)
    assert text.startswith("a\\u202eb\\u001b[31mc\n") and text.endswith("more characters)") and len(text) < 700
    assert shown("füße 漢字") == "füße 漢字"


def test_pictures_that_are_gone_damaged_or_elsewhere_are_not_shown(fake_run, tmp_path, monkeypatch) -> None:
    """Names of pictures come from files of answers, which may be from anywhere: none leads out of the data set's folder."""
    root = tmp_path / "pictures"
    root.mkdir()
    for path in (root / "a.png", tmp_path / "secret.png"):
        Image.new("RGB", (400, 300), (200, 30, 30)).save(path)
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:200])
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["a.png", "gone.png", "cut.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "", "a\0.png"]
    run = fake_run([["t"]]).score(1, "t", ["cat"] * len(names))
    read = module.read_predictions
    monkeypatch.setattr(module, "_images", lambda recipes: {"t": root})
    monkeypatch.setattr(module, "read_predictions", lambda folder: [
        {**row, "gold": {**row["gold"], "image": name}} for row, name in zip(read(folder), names, strict=True)
    ])  # fmt: skip
    rows = examples(run.root, measure(run.root), "strict", per_task=len(names))["t"]
    assert [row["picture"] is not None for row in rows] == [True] + [False] * 7
    assert rows[0]["picture"].startswith("data:image/webp;base64,")
