"""Load a base model and its processor from a folder in HF layout; resolve a family to such a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase

from mcit.core import lookup
from mcit.core.errors import ConfigError, StateError
from mcit.core.files import canonical_json, digest_of, read_json, sha256_file, write_json
from mcit.core.optional import needed
from mcit.core.paths import cache_dir
from mcit.core.schema import BaseConfig
from mcit.models import quant
from mcit.models.text import TextProcessor, auto_class, auto_class_of

_WEIGHTS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")


def materialize(base: BaseConfig, *, announce: Callable[[str], None] | None = None) -> Path:
    """Local HF folder of the base; a family that builds its own model does so now, once.

    Raises ConfigError when the folder is missing or is no model, DataError when a download fails.
    """
    return Path(lookup.module_of("models.families", base.family).materialize(base, announce=announce))


def pending(base: BaseConfig) -> str | None:
    """What `materialize` would have to download or build first, in words; None when the folder is there."""
    found = lookup.module_of("models.families", base.family).pending(base)
    return str(found) if found else None


def load_processor(path: Path | str, *, trust_remote_code: bool = False) -> Any:
    """The model's own processor, with the PIL image backend (torchvision is never needed); a tokenizer is wrapped."""
    try:
        found = AutoProcessor.from_pretrained(str(path), trust_remote_code=trust_remote_code, backend="pil")
        return TextProcessor(found) if isinstance(found, PreTrainedTokenizerBase) else found
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"no usable processor: {str(error).splitlines()[0]}",
            where=str(path),
            fix="the folder must hold processor, image processor and tokenizer files of an image-text-to-text model",
        ) from error


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
    refuse_quantised(path)
    extra: dict[str, Any] = {}
    full = quant.full_dtype(dtype, device)
    try:
        wanted: list[str] = []
        if dtype in quant.QUANTISED:
            needed("bitsandbytes", where="base.dtype")
            shape = skeleton(path, trust_remote_code=trust_remote_code)
            wanted = quant.language_linears(shape)
            given = quant.settings(shape, dtype=dtype, double_quant=double_quant, compute=full)
            extra = {"quantization_config": given, "device_map": {"": torch.device(device)}}
        model = auto_class(path, trust_remote_code=trust_remote_code).from_pretrained(
            str(path),
            dtype=full,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **extra,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"cannot be loaded as an image-text-to-text model: {str(error).splitlines()[0]}",
            where=str(path),
            fix="give a folder written by save_pretrained with safetensors weights",
        ) from error
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


def skeleton(path: Path | str, *, trust_remote_code: bool = False) -> Any:
    """The model of a folder with shapes and no weights (meta device)."""
    config = AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return auto_class_of(config).from_config(config, trust_remote_code=trust_remote_code)


def base_digest(path: Path | str) -> str:
    """sha256 over the names and contents of the model files of a folder.

    Hashing some hundred megabytes takes seconds, so the result is kept in the cache under names, sizes and times.
    """
    root = Path(path).resolve()
    files = sorted(p for p in root.iterdir() if p.is_file() and p.suffix in _WEIGHTS and not p.name.startswith("."))
    stamp = canonical_json([[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files])
    memo = cache_dir() / "digests" / f"{digest_of(stamp)[:32]}.json"
    if memo.is_file():
        return str(read_json(memo)["sha256"])
    digest = digest_of({p.name: sha256_file(p) for p in files})
    with contextlib.suppress(StateError):  # a cache that cannot be written only costs time
        write_json(memo, {"folder": str(root), "sha256": digest})
    return digest
