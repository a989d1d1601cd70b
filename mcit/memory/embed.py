"""Texts to vectors: by the language model that answers, or by a sentence encoder from a folder.

Shapes: N texts, T positions, D width.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcit.core.errors import ConfigError, DataError, McitError
from mcit.core.files import sha256_bytes, sha256_tree
from mcit.core.types import Batch
from mcit.data.encode import IGNORE, Encoder
from mcit.engine.forward import run_model
from mcit.engine.layers import layer_of
from mcit.models.basefiles import check_base, reading

LAYER = "0"
"""Where the language model's hidden states are read: what enters its first block, see docs/memory.md for the figures."""
_TOKENS = 512
"""Longest text that is encoded; what is beyond has no influence on its vector."""


def model_identity(digest: str, *, layer: str = LAYER) -> str:
    """Of `ModelEmbedder` with the weights of this digest, known before they are loaded."""
    return f"model {sha256_bytes(digest.encode())[:16]} layer {layer}"


class ModelEmbedder:
    """Mean over a text's tokens, without the first, of the answering model's own hidden states.

    The first position of a causal model gathers attention and is much the same for every text, so it says nothing about one.
    """

    def __init__(
        self, model: Any, encoder: Encoder, *, digest: str, device: torch.device, bf16: bool = False, layer: str = LAYER
    ) -> None:
        """`digest` is that of the weights. Raises ConfigError for a model without such hidden states."""
        self._model, self._encoder, self._device, self._bf16, self._layer = model, encoder, device, bf16, layer
        self.identity = model_identity(digest, layer=layer)
        try:
            layer_of(model, layer)
            self.dimension = int(model.get_input_embeddings().weight.shape[1])
        except (McitError, AttributeError, NotImplementedError, TypeError) as error:
            what = f"the model has no hidden states of its language model's layer {layer} to embed texts with ({error})"
            fix = "give a sentence encoder with --encoder FOLDER, or chat without --memory"
            raise ConfigError(what, where="--memory", fix=fix) from None

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D) fp32. Raises DataError for a text without a token."""
        tokenizer = self._encoder.processor.tokenizer
        ids = [list(tokenizer([text], add_special_tokens=False)["input_ids"][0])[:_TOKENS] for text in texts]
        for text, one in zip(texts, ids, strict=True):
            _require_tokens(text, one)
        length = max(len(one) for one in ids)
        tokens_NT = torch.full((len(ids), length), self._encoder.pad_id)
        mask_NT = torch.zeros_like(tokens_NT)
        for k, one in enumerate(ids):
            tokens_NT[k, : len(one)], mask_NT[k, : len(one)] = torch.tensor(one), 1
        labels_NT = torch.full_like(tokens_NT, IGNORE)
        typed = getattr(self._encoder.processor, "prefix_attention", False)
        pixels = {"token_type_ids": torch.zeros_like(tokens_NT)} if typed else {}
        batch = Batch("memory", (), tokens_NT, labels_NT, mask_NT, pixels, 0, until=self._layer)
        modes = {module: module.training for module in self._model.modules()}
        try:
            with (
                torch.no_grad(),
                torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16),
            ):
                out = run_model(self._model.eval(), batch, device=self._device, layers={self._layer})
        finally:
            for module, training in modes.items():
                module.training = training
        used_NT = mask_NT.clone()
        used_NT[:, 0] = mask_NT.sum(1) == 1  # a single token has to do
        return _mean(out.hidden[self._layer].float().cpu(), used_NT)


class FolderEmbedder:
    """A sentence encoder in Hugging Face layout: mean over tokens, or the first one where its folder says so."""

    def __init__(self, folder: Path | str, *, device: torch.device) -> None:
        """Nothing but safetensors is read, no code of the folder runs. Raises ConfigError for what is no such folder."""
        from transformers import AutoModel, AutoTokenizer

        self._folder, self._device = Path(folder), device
        fix = "give a folder with config.json, model.safetensors and a tokenizer"
        if not (self._folder / "config.json").is_file():
            raise ConfigError("is no folder of an encoder", where=f"--encoder {folder}", fix=fix)
        check_base(self._folder)
        with reading(f"--encoder {folder}", "cannot be loaded", fix=fix):
            self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            loaded: Any = AutoModel.from_pretrained(
                self._folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
            self.dimension = int(loaded.config.hidden_size)
            self._longest = min(_TOKENS, int(self._tokenizer.model_max_length), _positions(loaded.config))
            self._first = self._pools_first()
        self._model = loaded.eval().to(device)
        self.identity = f"folder {sha256_tree(self._folder)[:16]}"

    def _pools_first(self) -> bool:
        """What sentence-transformers' own file says of pooling."""
        with contextlib.suppress(FileNotFoundError):
            said = json.loads((self._folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
            return bool(said["pooling_mode_cls_token"])
        return False

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D) fp32. Raises DataError for a text without a token."""
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        given = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        for text, mask_T in zip(texts, given["attention_mask"], strict=True):
            _require_tokens(text, mask_T.nonzero().tolist())
        with torch.no_grad():
            hidden_NTD = self._model(**given.to(self._device)).last_hidden_state.float().cpu()
        if self._first:
            first_ND: NDArray[np.float32] = hidden_NTD[:, 0].numpy()
            return first_ND
        return _mean(hidden_NTD, given["attention_mask"].cpu())


def _positions(config: Any) -> int:
    """Tokens that an encoder has positions for, if these are few; some families count them from behind the padding's id."""
    known = getattr(config, "max_position_embeddings", None) or _TOKENS
    return int(known) if known >= _TOKENS else max(1, int(known) - (getattr(config, "pad_token_id", 0) or 0) - 1)


def _require_tokens(text: str, ids: Sequence[Any]) -> None:
    if not ids:
        raise DataError(f"the text {text[:40]!r} has no token", where="memory", fix="ask in words")


def _mean(hidden_NTD: Tensor, used_NT: Tensor) -> NDArray[np.float32]:
    summed_ND = (hidden_NTD * used_NT[..., None]).sum(1)
    out_ND: NDArray[np.float32] = (summed_ND / used_NT.sum(1, keepdim=True)).numpy()
    return out_ND
