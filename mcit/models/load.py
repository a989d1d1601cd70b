"""Load a base model and its processor from a folder in HF layout; resolve a family to such a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from mcit.core import garbage, lookup
from mcit.core.errors import ConfigError
from mcit.core.optional import needed
from mcit.core.schema import BaseConfig
from mcit.models import quant
from mcit.models.basefiles import check_base, reading
from mcit.models.processor import own_processor
from mcit.models.text import TextProcessor, auto_class_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROCESSOR = "the folder must hold processor, image processor and tokenizer files of an image-text-to-text model"
_WEIGHTS = "give a folder written by save_pretrained with safetensors weights"


def materialize(base: BaseConfig, *, announce: Callable[[str], None] | None = None) -> Path:
    """Local HF folder of the base; a family that builds its own model does so now, once.

    Raises ConfigError when the folder is missing, is no model or asks for files outside it, DataError when a download fails.
    """
    folder = Path(lookup.part_of("models.families", base.family).materialize(base, announce=announce))
    check_base(folder)
    return folder


def pending(base: BaseConfig) -> str | None:
    """What `materialize` would have to download or build first, in words; None when the folder is there."""
    found = lookup.part_of("models.families", base.family).pending(base)
    return str(found) if found else None


def load_processor(path: Path | str, *, trust_remote_code: bool = False, chat_template: str | None = None) -> Any:
    """The model's own processor, with the PIL image backend (torchvision is needed for videos only).

    A tokenizer is wrapped; `chat_template` is a file whose template replaces the model's own; a family with a file of its
    model type in ``models/families`` adapts its processor. Raises ConfigError.
    """
    check_base(path)
    with reading(path, "no usable processor", fix=_PROCESSOR):
        found = own_processor(Path(path), trust_remote_code=trust_remote_code)
        if isinstance(found, PreTrainedTokenizerBase):
            found = TextProcessor(found)
    if chat_template is not None:
        found.chat_template = read_template(chat_template)
        if isinstance(found, TextProcessor):
            found.tokenizer.chat_template = found.chat_template
    adapt = family_part(path, "adapt", trust_remote_code=trust_remote_code)
    return adapt(found) if adapt else found


def family_part(path: Path | str, name: str, *, trust_remote_code: bool = False) -> Callable[..., Any] | None:
    """The function `name` that ``models/families`` has for the model's type, if it has one. Raises ConfigError.

    A folder of a processor alone has no type.
    """
    if not (Path(path) / "config.json").is_file():
        return None
    kind = str(model_config(path, trust_remote_code=trust_remote_code).model_type)
    if kind not in lookup.known("models.families"):
        return None
    found: Callable[..., Any] | None = getattr(lookup.part_of("models.families", kind), name, None)
    return found


def read_template(file: str) -> str:
    """The chat template in a file. Raises ConfigError when it cannot be read."""
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"'{file}' cannot be read ({error})"
        fix = "give a text file that holds a Jinja chat template"
        raise ConfigError(what, where="base.chat_template", fix=fix) from None


def load_base(
    path: Path | str,
    *,
    dtype: str = "fp32",
    double_quant: bool = True,
    attention: str = "sdpa",
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """The frozen base in `dtype` (fp32, bf16, nf4 or int8), in eval mode; the last two quantise the language linears.

    Raises ConfigError when the folder holds no image-text-to-text model, or one that is quantised already.
    """
    garbage.as_usual()
    check_base(path)
    refuse_quantised(path)
    extra: dict[str, Any] = {}
    full = quant.full_dtype(dtype, device)
    wanted: list[str] = []
    if dtype in quant.QUANTISED:
        needed("bitsandbytes", where="base.dtype")
    with reading(path, "cannot be loaded as an image-text-to-text model", fix=_WEIGHTS):
        config = model_config(path, trust_remote_code=trust_remote_code)
        if dtype in quant.QUANTISED:
            shape = skeleton(path, trust_remote_code=trust_remote_code)
            wanted = quant.language_linears(shape)
            given = quant.settings(shape, dtype=dtype, double_quant=double_quant, compute=full)
            extra = {"quantization_config": given, "device_map": {"": torch.device(device)}}
        model, notes = auto_class_of(config).from_pretrained(
            str(path),
            dtype=full,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **extra,
        )
    _refuse_gaps(path, notes)
    model.requires_grad_(False)
    if wanted:
        quant.prepare(model, wanted)
        quantised: PreTrainedModel = model.eval()
        return quantised
    loaded: PreTrainedModel = model.eval().to(device)
    return loaded


def refuse_quantised(path: Path | str) -> None:
    """Raise ConfigError for a folder whose weights are quantised: neither merging nor exporting could start from it."""
    method = quant.quantised_already(path)
    if method is not None:
        raise ConfigError(
            f"the weights in this folder are quantised already ({method})",
            where=str(path),
            fix="give the full-precision model, and set base.dtype: nf4 or int8 to quantise its language linears here",
        )


def _refuse_gaps(path: Path | str, notes: dict[str, Any]) -> None:
    """A tensor that no file holds, or in another shape, would start from random numbers without a word."""
    gaps = sorted({str(n) for n in notes["missing_keys"]} | {str(n[0]) for n in notes["mismatched_keys"]})
    if gaps:
        what = (
            f"{len(gaps)} tensor(s) of the model are in no weight file or have another shape there, the first {gaps[0]}"
        )
        raise ConfigError(what, where=str(path), fix=_WEIGHTS)


def model_config(path: Path | str, *, trust_remote_code: bool = False) -> Any:
    """The config of a folder. Raises ConfigError when there is none that transformers can read."""
    with reading(path, "no usable model config", fix=_WEIGHTS):
        return AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code, local_files_only=True)


def skeleton(path: Path | str, *, trust_remote_code: bool = False) -> Any:
    """The model of a folder with shapes and no weights (meta device). Raises ConfigError as `model_config` does."""
    config = model_config(path, trust_remote_code=trust_remote_code)
    with reading(path, "no model can be made from its config", fix=_WEIGHTS), torch.device("meta"):
        return auto_class_of(config).from_config(config, trust_remote_code=trust_remote_code)
