"""Shapes of LLaVA-1.5 at its published sizes, from configs alone: nothing is downloaded.

Liu et al., "Improved Baselines with Visual Instruction Tuning", CVPR 2024, arXiv:2310.03744: CLIP ViT-L/14 at 336 pixels,
a two-layer projector, Vicuna 7B or 13B.
"""

from __future__ import annotations

from typing import Literal

import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedModel

from mcit.engine.estimate.activations import MicroBatch

IMAGE_POSITIONS = 576
_SIZES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}
"""Hidden, intermediate, layers, heads."""


def llava_shape(size: Literal["7b", "13b"]) -> LlavaConfig:
    """The model's config."""
    hidden, intermediate, layers, heads = _SIZES[size]
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        text_config=LlamaConfig(
            vocab_size=32064,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        ),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def llava_skeleton(size: Literal["7b", "13b"], *, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The model on the meta device, everything frozen."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(llava_shape(size), dtype=dtype)
    return model.requires_grad_(False)


def llava_batch(rows: int, *, text: int = 100, answer: int = 10) -> MicroBatch:
    """A micro-batch of rows with one image, `text` further positions and `answer` supervised ones each."""
    pixels = {"pixel_values": ((rows, 3, 336, 336), torch.float32)}
    return MicroBatch(rows, IMAGE_POSITIONS + text, rows * answer, pixels)
