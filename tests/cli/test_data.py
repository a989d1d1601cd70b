"""``mcit data``: exit codes, output for people and machines, no torch before it is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mcit.cli.main import main
from tests.fakes.families.make import write
from tests.fakes.processors import tiny_processor
from tests.fakes.recipes import recipe_file, rows
from tests.fakes.rows import llava


def called(capsys, *arguments):
    """Exit code, stdout, stderr."""
    code = main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_build_prints_the_folder(tmp_path, capsys):
    code, out, err = called(capsys, "build", "tiny/word", "--data-dir", tmp_path)
    assert code == 0 and Path(out.split("\n")[-2]).is_dir() and "train 120, validation 12, test 24" in out
    assert "building data set tiny/word" in err
    code, out, err = called(capsys, "build", "tiny/word", "--data-dir", tmp_path, "--json")
    found = json.loads(out)
    assert code == 0 and err == "" and found["counts"]["test"] == 24 and Path(found["path"]).is_dir()


def test_check_reports_every_bad_row_and_exits_4(tmp_path, capsys):
    train = [*rows(3), llava("x", answer=""), llava("y", "<image>", image="gone.png")]
    path = recipe_file(tmp_path, train=train)
    code, out, _ = called(capsys, "check", path)
    assert code == 4 and "train.json:5:x" in out and "train.json:6:y" in out and "train: 3 rows" in out
    assert "2 bad row(s) and the recipe allows 0" in out
    code, out, _ = called(capsys, "check", path, "--json")
    found = json.loads(out)
    assert found["sources"][0]["name"] == "train.json" and len(found["sources"][0]["sha256"]) == 64
    assert code == 4 and not found["ok"] and [b["where"] for b in found["bad"]] == ["train.json:5:x", "train.json:6:y"]
    path = recipe_file(tmp_path, train=train, allow_bad=2)
    code, out, _ = called(capsys, "check", path)
    assert code == 0 and "2 bad row(s) would be dropped" in out
    code, out, _ = called(capsys, "build", path, "--data-dir", tmp_path / "d")
    assert code == 0 and "dropped: train.json:5:x" in out


def test_check_knows_scorers_and_styles(tmp_path, capsys):
    path = recipe_file(tmp_path, train=rows(3), eval={"scorer": "exakt", "style": "wrod"})
    code, out, _ = called(capsys, "check", path)
    assert code == 4 and "eval.scorer: " in out and "did you mean 'exact'?" in out and "did you mean 'word'?" in out
    code, out, _ = called(capsys, "check", path, "--json")
    found = json.loads(out)
    assert (
        code == 4
        and not found["ok"]
        and [p["where"].split()[-1] for p in found["eval"]] == ["eval.scorer", "eval.style"]
    )


def test_build_of_bad_rows_exits_4(tmp_path, capsys):
    code, _, err = called(capsys, "build", recipe_file(tmp_path, train=[llava("x", answer="")]), "--data-dir", tmp_path)
    assert code == 4 and "1 bad row(s), the recipe allows 0" in err and "train.json:2:x" in err


def test_unknown_recipe_exits_4(capsys):
    code, _, err = called(capsys, "check", "tiny/wrod")
    assert code == 2 and "did you mean 'tiny/word'?" in err


def test_show_marks_the_supervised_text(tmp_path, capsys):
    code, out, _ = called(capsys, "show", "tiny/yesno", "--rows", 2, "--data-dir", tmp_path)
    assert code == 0 and out.count("⟦") == 2 and ("⟦yes⟧" in out or "⟦no⟧" in out)
    tiny_processor(tmp_path / "model", "chatml")
    code, out, _ = called(
        capsys,
        "show",
        "tiny/yesno",
        "--rows",
        1,
        "--split",
        "test",
        "--model",
        tmp_path / "model",
        "--data-dir",
        tmp_path,
    )
    assert code == 0 and "⟦yes<|im_end|>⟧" in out and "tokens" in out
    code, out, _ = called(
        capsys, "show", "tiny/yesno", "--rows", 1, "--json", "--model", tmp_path / "model", "--data-dir", tmp_path
    )
    (found,) = json.loads(out)["rows"]
    assert [p["text"] for p in found["pieces"] if p["supervised"]] == ["yes<|im_end|>"]
    assert 0 < found["supervised_tokens"] < found["tokens"]


def test_show_takes_a_family_with_videos_as_a_run_does(tmp_path, capsys):
    """Qwen2-VL's processor, whose video part needs torchvision."""
    folder = write("qwen2_vl", tmp_path / "model")
    code, out, _ = called(
        capsys, "show", "tiny/yesno", "--rows", 1, "--split", "test", "--model", folder, "--data-dir", tmp_path
    )
    assert code == 0 and "<|vision_start|><|image_pad|><|vision_end|>" in out and "<|im_end|>⟧" in out


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir()])
def test_show_without_a_usable_model_exits_4(tmp_path, capsys, make):
    make(tmp_path / "model")
    code, _, err = called(capsys, "show", "tiny/yesno", "--model", tmp_path / "model", "--data-dir", tmp_path)
    assert code == 4 and "model" in err


def test_brackets_of_markup_are_shown_as_they_are(tmp_path, capsys):
    path = recipe_file(tmp_path, train=[llava("x", "Is [bold]this[/bold] red?", "[0.1, 0.2]")])
    code, out, _ = called(capsys, "show", path, "--data-dir", tmp_path)
    assert code == 0 and "[bold]this[/bold]" in out and "⟦[0.1, 0.2]⟧" in out


def test_check_and_build_import_no_torch(tmp_path):
    code = (
        "import sys; from mcit.cli.main import main; "
        f"assert main(['data', 'build', 'tiny/word', '--data-dir', {str(tmp_path)!r}]) == 0; "
        "assert main(['data', 'check', 'tiny/word']) == 0; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr


def test_check_says_what_the_rows_are_to_a_model(tmp_path, capsys):
    tiny_processor(tmp_path / "model")
    path = recipe_file(tmp_path / "s", train=rows(40))
    code, out, _ = called(capsys, "check", path, "--model", tmp_path / "model", "--batch", 8)
    assert code == 0 and "5 steps an epoch at 8 rows a step" in out and "mean supervised tokens" in out
    code, out, _ = called(capsys, "check", path, "--model", tmp_path / "model", "--json")
    found = json.loads(out)["model"]["train"]
    assert found["rows"] == 40 and found["refused"] == [] and found["supervised_tokens"][""] > 1
    bad = recipe_file(tmp_path / "t", train=[*rows(2), llava("x", "Is </s> red?")])
    code, out, _ = called(capsys, "check", bad, "--model", tmp_path / "model")
    assert code == 4 and "control token" in out and "train.json:4:x" in out
