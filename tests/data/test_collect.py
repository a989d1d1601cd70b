"""Every bad row of a recipe in one pass, over sources, pictures and splits."""

import os
import shutil

from mcit.core.types import Row, Turn
from mcit.data.collect import collect, with_cue
from mcit.data.recipe import load_recipe
from tests.fakes.recipes import recipe_file, rows
from tests.fakes.rows import llava, picture


def found(tmp_path, **settings):
    """What `collect` finds, with problems as {where: what}."""
    result = collect(load_recipe(recipe_file(tmp_path, **settings)), tmp_path / "generated")
    assert all(problem.fix for problem in [*result.bad, *result.fatal, *result.warnings])
    return result, {p.where: p.what for p in result.bad}


def test_clean_rows(tmp_path):
    result, bad = found(tmp_path, train=rows(3), test=rows(2, prefix="t"))
    assert not bad and not result.fatal
    assert [r.id for r in result.rows["train"]] == ["r0", "r1", "r2"] and len(result.rows["test"]) == 2
    assert result.rows["train"][1].source == "train.json:3"
    assert result.rows["train"][0].root == str((tmp_path / "images").resolve())


def test_every_bad_picture_is_reported_and_only_its_rows_dropped(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "zero.png").write_bytes(b"")
    (tmp_path / "images" / "text.png").write_text("hello")
    picture(tmp_path, "outside.png")
    os.symlink(tmp_path / "outside.png", tmp_path / "images" / "link.png")
    names = ["zero.png", "text.png", "gone.png", "../outside.png", "link.png", "zero.png"]
    bad_rows = [llava(f"b{k}", "<image>\nq", image=name) for k, name in enumerate(names)]
    result, bad = found(tmp_path, train=[*rows(2), *bad_rows, llava("c", answer="")])
    assert [r.id for r in result.rows["train"]] == ["r0", "r1"]
    expected = ["empty", "not a picture", "does not exist", "leaves its root", "link out", "empty"]
    for k, what in enumerate(expected):
        assert what in bad[f"train.json:{k + 4}:b{k}"]
    assert "empty answer" in bad["train.json:10:c"] and len(bad) == 7


def test_ids_are_unique_in_a_split_but_may_return_in_another(tmp_path):
    sources = [
        {"kind": "llava", "path": "train.json", "images": "images"},
        {"kind": "llava", "path": "test.json", "images": "images"},
    ]
    result, bad = found(tmp_path, train=rows(2), test=[llava("r1", "other?")], sources=sources)
    assert list(bad) == ["test.json:2:r1"] and "already used at train.json:3" in bad["test.json:2:r1"]
    result, bad = found(tmp_path, train=rows(2), test=[llava("r1", "other?")])
    assert not bad


def test_overlap_of_train_and_test_is_found_by_content(tmp_path):
    """The same picture under another name, the same question with other blanks: known from training."""
    (tmp_path / "images").mkdir()
    picture(tmp_path / "images")
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "copy.png")
    picture(tmp_path / "images", "b.png", colour=(0, 9, 0))
    test = [
        llava("t0", "Is  it r 1? <image>", image="copy.png"),
        llava("t1", "<image>\nIs it r 0?", image="b.png"),
        llava("t2", "Text?"),
    ]
    train = [*rows(3), llava("text", "Text?")]
    result, bad = found(tmp_path, train=train, test=test)
    assert set(bad) == {"train.json:3:r1", "train.json:5:text"}
    assert "test row test.json:2:t0" in bad["train.json:3:r1"]
    assert [r.id for r in result.rows["train"]] == ["r0", "r2"] and len(result.rows["test"]) == 3


def test_boxes(tmp_path):
    answers = [
        "[0, 0.1, 0.5, 1]",
        "[0.1, 0.2, 0.1, 0.9]",
        "[0.1, 0.9, 0.2, 0.2]",
        "[0, 0, 1.01, 1]",
        "[0, 0, 1]",
        "left",
    ]
    result, bad = found(tmp_path, train=[llava(f"b{k}", f"q{k}", a, style="box") for k, a in enumerate(answers)])
    assert [r.id for r in result.rows["train"]] == ["b0"] and len(bad) == 5
    assert not found(tmp_path / "x", train=[llava("b", "q", "left", style="word")])[1]


def test_whole_sources_that_cannot_be_used(tmp_path):
    sources = [
        {"kind": "llava", "path": "gone.json"},
        {"kind": "llava", "path": "train.json", "images": "images", "sha256": "0" * 64},
        {"kind": "llava", "path": "train.json", "images": "images"},
    ]
    result, _ = found(tmp_path, train=rows(2), sources=sources)
    assert len(result.fatal) == 2 and len(result.rows["train"]) == 2
    assert "gone.json" in result.fatal[0].where and "the recipe expects 000" in result.fatal[1].what


def test_warnings(tmp_path):
    train = [llava(f"y{k}", f"q{k}?\nAnswer yes or no.", "yes" if k else "no", style="yes_no") for k in range(10)]
    train.append(llava("long", "q?\nAnswer yes or no.", "word " * 300, style="word"))
    test = [llava(f"t{k}", f"t{k}?\nSay yes or no.", style="yes_no") for k in range(3)]
    result, bad = found(tmp_path, train=train, test=test)
    what = "\n".join(w.what for w in result.warnings)
    assert not bad and len(result.warnings) == 3
    assert "90 % of the yes_no answers are 'yes'" in what and "1499 characters" in what
    assert "most questions of train end with 'Answer yes or no.', and 0 % of those of test hold that" in what
    balanced = [llava(f"y{k}", f"q{k}", "yes" if k % 5 < 3 else "no", style="yes_no") for k in range(10)]
    assert not found(tmp_path / "x", train=balanced)[0].warnings  # 60 % is still allowed


def test_a_cue_that_both_splits_know_is_no_warning(tmp_path):
    """Mixed wordings, options as last lines, and a cue inside the question: no majority on one side is no difference."""
    cue = "Answer with a letter."
    mixed = [llava(f"y{k}", f"q{k}?\n{cue if k % 3 else 'Say it.'}") for k in range(9)]
    third = [llava(f"t{k}", f"t{k}?\n{'Say it.' if k % 3 else cue}") for k in range(9)]
    assert not found(tmp_path / "a", train=mixed, test=third)[0].warnings
    options = [llava(f"o{k}", f"{cue} q{k}?\nA. red\nB. blue") for k in range(9)]
    assert not found(tmp_path / "b", train=mixed, test=options)[0].warnings
    other = [llava(f"p{k}", f"p{k}?\nSay it.") for k in range(9)]
    assert "test" in found(tmp_path / "c", train=other, test=options)[0].warnings[0].where


def test_a_cue_is_added_once_as_the_last_line_of_the_last_question():
    turns = (Turn("user", "First?"), Turn("assistant", "a"), Turn("user", "Second?\n"), Turn("assistant", "b"))
    row = with_cue(Row("r", (), turns, "t", "f:1"), "Answer with a letter.")
    assert [turn.text for turn in row.turns] == ["First?", "a", "Second?\nAnswer with a letter.", "b"]
    assert with_cue(row, "Answer with a letter.") is row


def test_rows_that_cannot_be_stored_are_bad_rows(tmp_path):
    """Mixed encodings, half a surrogate pair, an infinite number: each costs its row, named."""
    bad = [llava("b"), llava("c", answer="\ud800"), llava("d", meta={"k": "K"})]
    path = recipe_file(tmp_path, train=[llava("a", "q"), *bad, llava("e")])
    text = (tmp_path / "train.json").read_bytes().replace(b'"id": "b"', b'"id": "\xe9"').replace(b'"K"', b"1e999")
    (tmp_path / "train.json").write_bytes(text)
    result = collect(load_recipe(path), tmp_path / "generated")
    assert [r.id for r in result.rows["train"]] == ["a", "e"] and all(p.fix for p in result.bad)
    assert [p.what.split(" (")[0] for p in result.bad] == [
        "is not UTF-8 text",
        *["a text or number cannot be stored"] * 2,
    ]


def test_equal_ids_name_the_first(tmp_path):
    result, bad = found(tmp_path, train=[llava("a", "q1"), llava("b", "q2"), llava("a", "q3")])
    assert bad == {"train.json:4:a": "id 'a' is already used at train.json:2"} and len(result.rows["train"]) == 2
