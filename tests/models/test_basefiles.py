import json
import os
import shutil
import sys

import pytest
import torch

from mcit.core.errors import ConfigError
from mcit.core.schema import BaseConfig
from mcit.models import basefiles
from mcit.models.basefiles import base_digest, base_files, check_base, reading
from mcit.models.load import load_base, load_processor, materialize, model_config, skeleton
from tests.core.test_hashes import changed_behind
from tests.fakes.models import tiny_path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_path(), folder)
    return folder


def indexed(folder, name):
    """Move the weights behind an index that gives their file's name as `name`."""
    header = (folder / WEIGHTS).read_bytes()
    names = [n for n in json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")]) if n != "__metadata__"]
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {n: name for n in names}}))
    return header


def edited(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def every_entrance(folder):
    """What a command calls on a base; each must refuse it."""
    for call in (load_base, load_processor, check_base, lambda path: materialize(BaseConfig(model=str(path)))):
        with pytest.raises(ConfigError) as error:
            call(folder)
        yield error.value


@pytest.mark.parametrize(
    "name", ["../outside.bin", "../outside.safetensors", "pytorch_model.bin", "sub/model.safetensors"]
)
def test_weights_come_from_plain_safetensors_names_inside_the_folder(base, name):
    torch.save({"w": torch.ones(1)}, base.parent / "outside.bin")
    data = indexed(base, name)
    target = base / name
    target.parent.mkdir(exist_ok=True)
    if not target.exists():
        target.write_bytes(data)
    for error in every_entrance(base):
        assert "plain *.safetensors name" in error.what and error.where.endswith(INDEX) and error.fix


def test_an_absolute_path_in_an_index_is_refused(base):
    data = indexed(base, str(base.parent / "outside.safetensors"))
    (base.parent / "outside.safetensors").write_bytes(data)
    with pytest.raises(ConfigError, match=r"plain \*\.safetensors name"):
        load_base(base)


def test_a_config_may_name_an_index_of_the_folder_alone(base):
    data = indexed(base, "other.safetensors")
    (base / "other.safetensors").write_bytes(data)
    edited(base, "config.json", transformers_weights=INDEX)
    check_base(base)
    shutil.copy(base / INDEX, base.parent / INDEX)
    edited(base, "config.json", transformers_weights=f"../{INDEX}")
    for error in every_entrance(base):
        assert f"config.json names '../{INDEX}'" in error.what


def test_hidden_and_compiled_files_are_not_of_a_base(base):
    before = base_files(base)
    for name in (".git/config.json", "__pycache__/code.py", "part/__pycache__/code.py", ".hidden.json"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("{}")
    assert base_files(base) == before
    (base / "part" / "code.py").write_text("")
    assert set(base_files(base)) - set(before) == {"part/code.py"}


def test_a_config_cannot_name_other_weights_either(base):
    edited(base, "config.json", transformers_weights="../outside.safetensors")
    for error in every_entrance(base):
        assert "config.json names '../outside.safetensors'" in error.what


def test_an_index_of_plain_names_loads_and_is_in_the_digest(base):
    before = {n: p.clone() for n, p in load_base(base).named_parameters()}
    (base / "part-1.safetensors").write_bytes(indexed(base, "part-1.safetensors"))
    after = dict(load_base(base).named_parameters())
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert {INDEX, "part-1.safetensors"} <= set(base_files(base))


def test_an_index_without_its_file_or_without_a_map_is_refused(base):
    indexed(base, "part-1.safetensors")
    with pytest.raises(ConfigError, match=r"names part-1\.safetensors, which is missing"):
        check_base(base)
    (base / INDEX).write_text(json.dumps({"weight_map": ["part-1.safetensors"]}))
    with pytest.raises(ConfigError, match="no weight_map"):
        check_base(base)


def test_an_adapter_in_the_base_s_folder_cannot_lead_elsewhere(base):
    (base / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"})
    )
    for error in every_entrance(base):
        assert "holds an adapter" in error.what and "base.adapter" in error.fix


def test_weights_that_are_cut_off_are_named_before_anything_loads(base):
    (base / WEIGHTS).write_bytes((base / WEIGHTS).read_bytes()[:-1000])
    for error in every_entrance(base):
        assert "cut off or damaged" in error.what and error.where.endswith(WEIGHTS)


def test_tensors_that_no_file_holds_are_no_random_numbers(base):
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / WEIGHTS)
    name = next(n for n in tensors if "q_proj" in n)
    save_file({n: t for n, t in tensors.items() if n != name}, base / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="1 tensor.* of the model are in no weight file"):
        load_base(base)
    save_file({**tensors, name: torch.zeros(3, 3)}, base / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ConfigError):
        load_base(base)


@pytest.mark.parametrize(
    "text", ["[]", "{", '"x"', "[" * 50_000, '{"a": ' + "9" * 5000 + "}", "\ud800".encode("utf-16", "surrogatepass")]
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_files_of_a_base_that_are_no_mappings_are_named(base, file, text):
    (base / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        check_base(base)
    assert error.value.where.endswith(file) and error.value.fix


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "no-such-model"},
        {"model_type": ["llava"]},
        {"text_config": []},
        {"text_config": {"model_type": "llama", "hidden_size": "wide"}},
        {"text_config": {"model_type": "llama", "hidden_size": -1, "num_attention_heads": 0}},
        {"vision_config": 7},
        {"torch_dtype": "no_dtype", "dtype": "no_dtype"},
    ],
)
def test_nonsense_in_a_config_is_an_error_of_the_base(base, changes):
    edited(base, "config.json", **changes)
    for call in (skeleton, load_base):
        with pytest.raises(ConfigError) as error:
            call(base)
        assert str(base) in error.value.where and error.value.fix


def test_what_is_read_is_in_the_digest(base):
    opened, listening = set(), [True]

    def note(event, arguments):
        if listening and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            opened.add(os.path.realpath(os.fsdecode(arguments[0])))

    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    sys.addaudithook(note)
    try:
        load_processor(base), load_base(base), model_config(base)
    finally:
        listening.clear()
    read = {path for path in opened if path.startswith(str(base.resolve()))}
    assert len(read) > 3 and read <= {str(p) for p in base_files(base).values()}
    assert not any(path.endswith((".bin", ".pt", ".pth", ".pkl")) for path in opened)


def test_digest_follows_the_content(base):
    assert base_digest(base) == base_digest(tiny_path()) == base_digest(base)
    (base / "README.md").write_text("not read by any library")
    assert base_digest(base) == base_digest(tiny_path())
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    assert base_digest(base) != base_digest(tiny_path())


def test_a_change_with_size_and_time_kept_is_seen(base):
    before = base_digest(base)
    changed_behind(base / WEIGHTS)
    assert base_digest(base) != before


def test_a_file_that_cannot_be_read_is_named(base, monkeypatch):
    monkeypatch.setattr(basefiles, "sha256_files", lambda paths: (None for _ in paths))
    with pytest.raises(ConfigError, match="cannot be read"):
        base_digest(base)


def test_only_what_cannot_be_helped_passes_the_border():
    for error in (MemoryError(), ConfigError("mine")):
        with pytest.raises(type(error)) as found, reading("m", "what", fix="fix"):
            raise error
        assert found.value is error
    with pytest.raises(ConfigError, match="^m: what: AttributeError: no such\n  fix$"), reading("m", "what", fix="fix"):
        raise AttributeError("no such\nsecond line")


def test_a_fifo_among_the_files_is_refused(base):
    os.mkfifo(base / "tokenizer.model")
    with pytest.raises(ConfigError, match="no regular file"):
        check_base(base)


def test_a_folder_is_checked_once_until_a_file_changes(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    read = []
    monkeypatch.setattr(
        basefiles, "read_mapping", lambda file, real=basefiles.read_mapping: read.append(file) or real(file)
    )
    check_base(tmp_path)
    before = len(read)
    check_base(tmp_path)
    assert len(read) == before
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="not a mapping"):
        check_base(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for _ in range(2):  # a link that leads nowhere has no time to know the folder by
        count = len(read)
        check_base(tmp_path)
        assert len(read) > count
