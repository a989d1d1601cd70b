"""What `mcit doctor --bench` trains and asks: a base of the user, or LLaVA's shape with random weights made on the device.

Rows are questions about pictures of noise, several to a picture as in instruction tuning data; questions and answers are of
unlike length.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from mcit.core.schema import BaseConfig
from mcit.core.types import Row, Sample, Turn
from mcit.data.encode import IGNORE, Encoder
from mcit.engine.estimate.llava import llava_shape
from mcit.models.load import load_base, load_processor, materialize

SIZES = {"tiny": 0, "7b": 55, "13b": 100}
"""Shapes, with the GB of GPU memory from which one is chosen. 7B and 13B are LLaVA-1.5's; Liu et al., arXiv:2310.03744."""
QUESTION, ANSWER = (8, 40), (2, 12)
"""Fewest and most tokens (words, of a base of the user)."""
_ASKED = 20
_PICTURE = 336
"""Pixels a side of a picture for a base of the user."""


@dataclass(frozen=True)
class Workload:
    """A model on its device and rows for it."""

    name: str
    model: Any
    train: list[Sample]
    """Rows of a step."""
    asked: list[Sample]
    """Prompts to answer."""
    pad_id: int

    @property
    def bf16(self) -> bool:
        """Whether weights are bf16, and so what is computed with them."""
        return next(self.model.parameters()).dtype is torch.bfloat16


def size_for(device: torch.device) -> str:
    """The largest shape that this memory holds in training; ``tiny`` on a CPU."""
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else 0.0
    return max((size for size, needs in SIZES.items() if needs <= memory), key=lambda size: SIZES[size])


def dtype_for(device: torch.device) -> str:
    """bf16 on a GPU, fp32 on a CPU."""
    return "bf16" if device.type == "cuda" else "fp32"


def of_shape(size: str, *, device: torch.device, rows: int, questions: int) -> Workload:
    """Random weights of a size, `rows` rows a step, `questions` to a picture; nothing is read or downloaded."""
    config = _tiny() if size == "tiny" else llava_shape(size)  # type: ignore[arg-type]
    dtype = torch.bfloat16 if dtype_for(device) == "bf16" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    vision: Any = config.vision_config
    image = config.image_token_id
    shape, tokens = (1, 3, vision.image_size, vision.image_size), (vision.image_size // vision.patch_size) ** 2
    draw = torch.Generator().manual_seed(0)

    def words(bounds: tuple[int, int]) -> Tensor:
        count = int(torch.randint(bounds[0], bounds[1] + 1, (), generator=draw))
        return torch.randint(3, image, (count,), generator=draw)

    def made(count: int, *, prompts: bool) -> list[Sample]:
        out = []
        for number in range(count):
            if number % questions == 0:
                picture = torch.randn(shape, generator=draw)
            answer = words(ANSWER)
            prompt = torch.cat([torch.tensor([1]), torch.full((tokens,), image), words(QUESTION)])
            ids = prompt if prompts else torch.cat([prompt, answer])
            labels = torch.full_like(ids, IGNORE)
            labels[len(prompt) :] = ids[len(prompt) :]
            row = Row(f"r{number}", (f"{number // questions}.png",), _turns("", ""), "bench", f"bench:{number}")
            out.append(Sample(row, ids, labels, {"pixel_values": picture}, ids == image))
        return out

    model.requires_grad_(False).eval()
    return Workload(
        f"LLaVA shape {size}, random weights", model, made(rows, prompts=False), made(_ASKED, prompts=True), 0
    )


def of_base(base: BaseConfig, *, device: torch.device, rows: int, questions: int) -> Workload:
    """The user's base. Raises ConfigError for what is no model, DataError where it takes no pictures."""
    path = materialize(base)
    encoder = Encoder(load_processor(path))
    draw = random.Random(0)

    def words(bounds: tuple[int, int]) -> str:
        return " ".join("".join(draw.choices("abcdefgh", k=3)) for _ in range(draw.randint(*bounds)))

    with tempfile.TemporaryDirectory() as folder:
        made = []
        for number in range(rows + _ASKED):
            name = f"{number // questions}.png"
            if number % questions == 0:
                noise = draw.randbytes(3 * _PICTURE * _PICTURE)
                Image.frombytes("RGB", (_PICTURE, _PICTURE), noise).save(Path(folder) / name)
            turns = _turns(f"<image>\n{words(QUESTION)}", words(ANSWER))
            made.append(Row(f"r{number}", (name,), turns, "bench", f"bench:{number}", root=folder))
        train = [encoder.encode(row) for row in made[:rows]]
        asked = [encoder.prompt(row) for row in made[rows:]]
    model = load_base(path, dtype=dtype_for(device), device=device)
    return Workload(path.name, model, train, asked, encoder.pad_id)


def base_of(model: str) -> BaseConfig:
    """A folder in HF layout or the family of a model that builds itself; `of_base` refuses what is neither."""
    given = {"family": "hf", "model": model} if Path(model).is_dir() or "/" in model else {"family": model}
    return BaseConfig.model_validate(given)


def _turns(question: str, answer: str) -> tuple[Turn, ...]:
    return Turn("user", question), Turn("assistant", answer)


def _tiny() -> LlavaConfig:
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
        ),
        image_token_index=500, vision_feature_layer=-2, vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )  # fmt: skip
