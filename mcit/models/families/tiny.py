"""A random two-layer LLaVA (CLIP tower, Llama decoder, byte-level tokenizer) for trying and testing the machinery.

Its answers mean nothing; it is built in a second, from a seed alone, and is never reported as a result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from mcit.core.files import build_once, digest_of
from mcit.core.paths import cache_dir
from mcit.core.schema import BaseConfig

_RECIPE = {"version": 1, "hidden": 64, "layers": 2, "image": 32, "patch": 8}
IMAGE, PAD, END = "<image>", "<pad>", "</s>"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: "
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    " ASSISTANT:{% else %} {% generation %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}"
    "</s>{% endgeneration %}{% endif %}{% endfor %}"
)


def materialize(base: BaseConfig, *, announce: Callable[[str], None] | None = None) -> Path:
    """Folder of the model for this seed, written on first use."""
    return build_once(_folder(base), functools.partial(build, seed=base.seed))


def pending(base: BaseConfig) -> str | None:
    """Nothing is ever downloaded."""
    return None


def _folder(base: BaseConfig) -> Path:
    return cache_dir() / "models" / f"tiny-{base.seed}-{digest_of([_RECIPE, TEMPLATE])[:12]}"


def build(folder: Path, *, seed: int = 0) -> None:
    """Write model, processor, chat template and generation config of the tiny LLaVA into `folder`."""
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        GenerationConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = byte_tokenizer()
    size, patch, hidden = _RECIPE["image"], _RECIPE["patch"], _RECIPE["hidden"]
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=size,
            patch_size=patch,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=_RECIPE["layers"],
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():  # the default 0.02 makes every answer the same; spread them
                if parameter.ndim > 1:
                    parameter.mul_(4.0)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_center_crop=True
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)


def byte_tokenizer():  # type: ignore[no-untyped-def]
    """A PreTrainedTokenizerFast of 256 byte tokens and three special ones; nothing is ever unknown."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, END, IMAGE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, extra_special_tokens={"image_token": IMAGE}
    )
