"""The embedded demo model: an EfficientNet-Lite0 tower in front of a small Llama, as one LLaVA model.

This file is self-contained: it imports torch and transformers only, and travels with every export, so that the folder loads
with ``AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)`` where mcit is not installed.

Tower: Tan and Le, "EfficientNet", ICML 2019, arXiv:1905.11946, in the Lite0 variant (no squeeze-excitation, ReLU6), batch
norms folded into the convolutions. It returns one token per stride-32 cell: 320 channels of the last stage, the 4 x 112
channels of the stride-16 stage that the cell covers, both standardised per channel, and one-hot row and column.
Shapes: B images, H and W pixels, T tokens, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Expansion, kernel, stride, channels out, repeats."""
_MIDDLE = 4
"""Stage whose stride-16 map is used beside the last one."""


class Lite0VisionConfig(PreTrainedConfig):
    """Sizes of the tower; everything else is the architecture."""

    model_type = "mcit_lite0_vision"

    def __init__(self, image_size: int = 128, patch_size: int = 32, **kwargs: Any) -> None:
        self.image_size = image_size
        self.patch_size = patch_size
        self.grid = image_size // patch_size
        self.feature_size = STAGES[-1][3] + 4 * STAGES[_MIDDLE][3]
        self.hidden_size = self.feature_size + 2 * self.grid
        for name in ("grid", "feature_size", "hidden_size"):
            kwargs.pop(name, None)
        super().__init__(**kwargs)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; a residual where shapes allow."""

    def __init__(self, expand: int, kernel: int, stride: int, inner: int, outer: int, *, residual: bool) -> None:
        super().__init__()
        wide = inner * expand
        self.expand = nn.Conv2d(inner, wide, 1) if expand > 1 else None
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide)
        self.project = nn.Conv2d(wide, outer, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, inner, H, W) to (B, outer, H / stride, W / stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class Lite0VisionModel(PreTrainedModel):
    """Pixels (B, 3, H, W) to tokens (B, T, D)."""

    config_class = Lite0VisionConfig
    base_model_prefix = "lite0"
    main_input_name = "pixel_values"
    _no_split_modules = ["InvertedResidual"]
    # There is no attention in here, so any implementation asked of the whole model is fine.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: Lite0VisionConfig) -> None:
        super().__init__(config)
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        blocks, inner = [], 32
        self.ends: list[int] = []
        for expand, kernel, stride, outer, repeats in STAGES:
            for i in range(repeats):
                step = stride if i == 0 else 1
                blocks.append(InvertedResidual(expand, kernel, step, inner, outer, residual=i > 0))
                inner = outer
            self.ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.feature_scale = nn.Parameter(torch.ones(config.feature_size))
        self.feature_shift = nn.Parameter(torch.zeros(config.feature_size))
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        """Raw features (B, grid, grid, feature_size) before standardisation."""
        x = F.relu6(self.stem(pixel_values))
        middle = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.ends[_MIDDLE]:
                middle = x
        return torch.cat([F.pixel_unshuffle(middle, 2), x], dim=1).permute(0, 2, 3, 1)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Standardised features and one-hot position of each cell, row by row."""
        x = self.features(pixel_values.to(self.stem.weight.dtype)) * self.feature_scale + self.feature_shift
        rows, columns = x.shape[1:3]
        eye = torch.eye(self.config.grid, dtype=x.dtype, device=x.device)
        place = torch.cat(
            [eye[:rows, None].expand(-1, columns, -1), eye[None, :columns].expand(rows, -1, -1)], dim=-1
        ).expand(len(x), -1, -1, -1)
        tokens = torch.cat([x, place], dim=-1).flatten(1, 2)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=tokens.mean(1), hidden_states=(tokens,)
        )


class EmbeddedLlavaConfig(LlavaConfig):
    """LlavaConfig whose tower is the one above."""

    model_type = "mcit_embedded_llava"


class EmbeddedLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """LlavaForConditionalGeneration under a name of its own, so that an export can carry this file."""

    config_class = EmbeddedLlavaConfig


AutoConfig.register("mcit_lite0_vision", Lite0VisionConfig, exist_ok=True)
AutoModel.register(Lite0VisionConfig, Lite0VisionModel, exist_ok=True)
AutoConfig.register("mcit_embedded_llava", EmbeddedLlavaConfig, exist_ok=True)
AutoModelForImageTextToText.register(EmbeddedLlavaConfig, EmbeddedLlavaForConditionalGeneration, exist_ok=True)
EmbeddedLlavaConfig.register_for_auto_class()
EmbeddedLlavaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
