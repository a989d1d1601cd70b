"""What a guard's folder says; that its loader answers as mcit does is in tests/evals/filters/test_guard.py."""

import json

import pytest
import torch

from mcit.cli.main import main
from mcit.core.errors import ConfigError
from mcit.core.files import write_json
from mcit.core.stored import write_manifest
from mcit.core.tensorfile import save_tensors
from mcit.export.guard import write
from tests.fakes.trained_run import make_run


def left(folder, **changes):
    state = {"detector": "analytic", "layer": "last", "mean": True, "phrases": ["red"], **changes}
    write_json(folder / "state.json", {"state_version": 1, "state": state})
    save_tensors(folder / "tensors.safetensors", {"weight|head": torch.randn(5, 2).double()})
    return folder


def test_settings_of_the_filter_go_along(tmp_path):
    home = left(tmp_path / "guard")
    (tmp_path / "out").mkdir()
    record = write(home, ["strip", {"use": "guard", "delta": 0.5, "infinite": True, "beams": 7}], tmp_path / "out")
    about = json.loads((tmp_path / "out" / "guard.json").read_text())
    assert about["restriction"] == {"hard": 1e9, "delta": 0.5, "kappa": 10.0, "infinite": True, "window": 1}
    assert (about["beams"], about["phrases"], record["difference"]) == (7, ["red"], 0.0)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "guard.json", "guard.safetensors", "detector.py", "guarding.py", "loader.py",
    }  # fmt: skip


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    run, _ = make_run(tmp_path, ("merge",))
    stage = run.layout.stage("01-r0")
    left(stage / "methods" / "guard")
    write_manifest(stage)
    assert main(["export", str(run.layout.root), "--stage", "1", "--as", "guard", "--out", str(tmp_path / "out")]) == 0
    assert "the detector's probabilities differ by at most 0.00e+00" in capsys.readouterr().out
    text = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in text and "- lora" not in text


def test_layers_that_a_plain_model_counts_in_another_way(tmp_path):
    with pytest.raises(ConfigError, match="layer '0.5'"):
        write(left(tmp_path / "guard", layer="0.5"), [], tmp_path)
