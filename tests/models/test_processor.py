"""Processors are put together without what only videos need."""

import json
import shutil
from types import SimpleNamespace

import pytest
from transformers import AutoProcessor, Qwen2VLProcessor

from mcit.core.errors import ConfigError
from mcit.models import processor as module
from mcit.models.load import load_processor
from mcit.models.processor import NoVideos, own_processor
from tests.fakes.families.make import write
from tests.fakes.families.rows import conversation, pictures

SETTINGS = {"min_pixels": 64, "max_pixels": 576, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write("qwen2_vl", tmp_path_factory.mktemp("qwen"))


def test_a_family_with_videos_serves_pictures_without_torchvision(folder):
    """transformers itself refuses the folder here; the class is the family's own, the video part a stand-in."""
    with pytest.raises(ImportError, match="Torchvision"):
        AutoProcessor.from_pretrained(folder)
    found = own_processor(folder)
    assert type(found) is Qwen2VLProcessor and isinstance(found.video_processor, NoVideos)
    assert type(found.image_processor).__name__ == "Qwen2VLImageProcessorPil"
    assert {key: getattr(found.video_processor, key) for key in SETTINGS} == SETTINGS


def test_a_video_gets_a_message_that_names_the_package(folder):
    with pytest.raises(ImportError, match=r"videos need a package .*[Tt]orchvision.*pictures work without it"):
        own_processor(folder)(text=["<|video_pad|>"], videos=["film.mp4"])


def test_saving_writes_the_video_parts_settings_under_its_own_class(folder, tmp_path):
    own_processor(folder).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "processor_config.json").read_text())
    assert written["processor_class"] == "Qwen2VLProcessor"
    video = written["video_processor"]
    assert video["video_processor_type"] == "Qwen2VLVideoProcessor" and not {"why", "real"} & set(video)
    assert SETTINGS.items() <= video.items()


def test_the_real_video_part_is_taken_where_it_loads(folder, monkeypatch):
    """With torchvision ``AutoVideoProcessor`` gives the real class; then nothing stands in."""
    real = NoVideos.of(folder, "made here, to be told apart")
    loads = SimpleNamespace(from_pretrained=lambda *args, **settings: real)
    monkeypatch.setattr(module, "AutoVideoProcessor", loads)
    assert own_processor(folder).video_processor is real


def test_the_class_is_found_by_the_models_type_where_no_file_names_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "processor_config.json").unlink()
    assert "processor_class" not in (tmp_path / "preprocessor_config.json").read_text()
    assert type(own_processor(tmp_path)) is Qwen2VLProcessor


def test_a_missing_package_is_named_with_its_cure(tmp_path, monkeypatch):
    import transformers.models.smolvlm.processing_smolvlm as smolvlm

    write("smolvlm", tmp_path)
    monkeypatch.setattr(smolvlm, "num2words", None)
    with pytest.raises(ConfigError, match="num2words") as caught:
        load_processor(tmp_path)
    assert caught.value.fix == "install the package that is named"


def test_another_template_from_a_file(folder, tmp_path):
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m['content'][0]['text'] }}{% endfor %}")
    found = load_processor(folder, chat_template=str(tmp_path / "mine.jinja"))
    row = conversation(pictures(tmp_path), "a", "b")
    said = [{"role": turn.role, "content": [{"type": "text", "text": turn.text}]} for turn in row.turns]
    assert found.apply_chat_template(said) == "ab"
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_processor(folder, chat_template=str(tmp_path / "none.jinja"))
    assert caught.value.where == "base.chat_template"
