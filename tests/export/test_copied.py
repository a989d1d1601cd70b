import json

import pytest
import torch

from mcit.core.errors import StateError
from mcit.core.files import sha256_file, write_json, write_text
from mcit.export.copied import Template, copy_config, copy_unchanged


@pytest.fixture
def base(tmp_path):
    """A folder as an older transformers wrote it: other names of keys, files no newer one writes."""
    files = {
        "config.json": '{"torch_dtype": "float16", "rope_theta": 1e4,\n  "text_config": {"torch_dtype": "float16"}}',
        "preprocessor_config.json": '{"feature_extractor_type": "CLIPFeatureExtractor"}',
        "generation_config.json": '{"transformers_version": "4.31.0"}',
        "tokenizer.model": "sentencepiece",
        "tokenizer_config.json": '{"chat_template": "old"}',
        "special_tokens_map.json": "{}",
        "chat_template.jinja": "base",
        "additional_chat_templates/tools.jinja": "tools",
        "modelling.py": "X = 1",
        "LICENSE.txt": "free",
        "README.md": "theirs",
        "model.safetensors": "weights",
        "model.safetensors.index.json": "{}",
        "pytorch_model.bin": "weights",
        ".hidden.json": "{}",
        "onnx/config.json": "{}",
    }
    for name, text in files.items():
        write_text(tmp_path / "base" / name, text)
    return tmp_path / "base"


def test_bytes_of_the_base_and_no_weights_no_card(base, tmp_path):
    out = tmp_path / "out"
    write_text(out / "generation_config.json", "what a newer version wrote")
    names = copy_unchanged(base, out)
    assert names == sorted(
        [
            "LICENSE.txt",
            "additional_chat_templates/tools.jinja",
            "chat_template.jinja",
            "generation_config.json",
            "modelling.py",
            "preprocessor_config.json",
            "special_tokens_map.json",
            "tokenizer.model",
            "tokenizer_config.json",
        ]
    )
    assert all((out / name).read_bytes() == (base / name).read_bytes() for name in names)
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == names


def test_the_template_of_the_run_takes_the_place_of_the_bases(base, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("mine")
    names = copy_unchanged(base, tmp_path / "out", template=Template(file, sha256_file(file)))
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "mine" and "chat_template.jinja" not in names
    for change in (lambda: file.write_text("other"), file.unlink):
        template = Template(file, sha256_file(file))
        change()
        with pytest.raises(StateError, match=r"mine.jinja"):
            copy_unchanged(base, tmp_path / "out", template=template)
        file.write_text("mine")


def test_a_config_is_copied_or_changed_in_its_dtype_alone(base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert copy_config(base, out, torch.float16)
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert not copy_config(base, out, torch.bfloat16)
    changed = json.loads((out / "config.json").read_text())
    assert changed == {"torch_dtype": "bfloat16", "rope_theta": 1e4, "text_config": {"torch_dtype": "bfloat16"}}
    write_json(base / "config.json", {"dtype": "float32", "vision_config": {"dtype": "float32", "dtype_map": None}})
    assert copy_config(base, out, torch.float32) and not copy_config(base, out, torch.bfloat16)
    write_json(base / "config.json", {"model_type": "old"})
    assert not copy_config(base, out, torch.float32)
    assert json.loads((out / "config.json").read_text()) == {"model_type": "old", "torch_dtype": "float32"}
