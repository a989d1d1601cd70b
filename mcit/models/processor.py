"""A model's own processor, put together so that pictures need nothing that only videos need.

Processors with a video part load it through torchvision. Where that is absent, image processor and tokenizer are loaded
all the same, and a stand-in that raises on use takes the video part's place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    AutoVideoProcessor,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.video_processing_utils import VideoProcessorMixin

from mcit.core.errors import ConfigError

_NAMED_IN = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_VIDEO = ("video_preprocessor_config.json", "preprocessor_config.json")
_PART = "video_processor"


class NoVideos(VideoProcessorMixin):
    """Takes the place of a video processor that cannot be loaded; keeps its settings, so that saving writes them back."""

    why = ""
    real: str | None = None
    """Name of the class whose place it takes."""
    num_frames = fps = _processor_class = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ImportError: pictures work without this part, videos do not."""
        raise ImportError(f"videos need a package that is not installed ({self.why}); pictures work without it")

    preprocess = __call__

    def to_dict(self) -> dict[str, Any]:
        """The settings as the folder has them, with the name of the real class."""
        found = super().to_dict()
        found["video_processor_type"] = self.real
        return {k: v for k, v in found.items() if k not in ("why", "real")}

    @classmethod
    def of(cls, folder: Path, why: str) -> NoVideos:
        """With the settings that the folder gives its video processor."""
        found = _json(folder / _NAMED_IN[0]).get(_PART) or next(filter(None, (_json(folder / n) for n in _VIDEO)), {})
        part = cls.__new__(cls)
        part.__dict__.update({k: v for k, v in found.items() if not callable(getattr(cls, k, None))})
        part.why, part.real = why, found.get("video_processor_type")
        return part


def own_processor(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Processor, or tokenizer of a language model, as ``AutoProcessor`` finds it, with the PIL image backend.

    Raises ConfigError for a package that is missing, and whatever transformers does for files it cannot use.
    """
    cls = _processor_class(folder, trust_remote_code=trust_remote_code)
    settings = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        if cls is None or _PART not in cls.get_attributes():
            return AutoProcessor.from_pretrained(str(folder), backend="pil", **settings)
        return _from_parts(cls, folder, settings)
    except ImportError as error:
        raise ConfigError(
            f"no usable processor: {_first_line(error)}", where=str(folder), fix="install the package that is named"
        ) from error


def _from_parts(cls: type[ProcessorMixin], folder: Path, settings: dict[str, Any]) -> Any:
    given, _ = cls.get_processor_dict(str(folder))
    parts = []
    for name in cls.get_attributes():
        if name == "tokenizer":
            parts.append(AutoTokenizer.from_pretrained(str(folder), **settings))
        elif name == "image_processor":
            parts.append(AutoImageProcessor.from_pretrained(str(folder), backend="pil", **settings))
        elif name == _PART:
            parts.append(_video_part(folder, settings))
        else:
            raise ValueError(f"{cls.__name__} has a part that is neither text nor picture: {name}")
    return _assembled(cls, parts, given)


def _assembled(cls: type[ProcessorMixin], parts: list[Any], given: dict[str, Any]) -> Any:
    """The processor from its parts; without torchvision transformers has no class to check a video part against."""

    def checked(self: Any, name: str, part: Any) -> Any:
        return None if isinstance(part, NoVideos) else cls.check_argument_for_proper_class(self, name, part)

    open_to_stand_ins: Any = type(cls.__name__, (cls,), {"check_argument_for_proper_class": checked})
    processor = open_to_stand_ins.from_args_and_dict(parts, given)
    processor.__class__ = cls
    return processor


def _video_part(folder: Path, settings: dict[str, Any]) -> Any:
    try:
        return AutoVideoProcessor.from_pretrained(str(folder), **settings)
    except ImportError as error:
        return NoVideos.of(folder, _first_line(error))


def _first_line(error: ImportError) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _processor_class(folder: Path, *, trust_remote_code: bool) -> Any:
    """The class that a folder names, or that belongs to its model; None for a tokenizer alone and for code of its own."""
    configs = [_json(folder / name) for name in _NAMED_IN]
    if any("AutoProcessor" in config.get("auto_map", {}) for config in configs):
        return None
    name = next((config["processor_class"] for config in configs if config.get("processor_class")), None)
    if name is not None:
        return processor_class_from_name(name)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
    return PROCESSOR_MAPPING[type(config)] if type(config) in PROCESSOR_MAPPING else None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no file. Raises ValueError for a file that is none."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return found
