"""One maker per family: a folder as a user has it, written in a second from a seed.

Every class is the family's own from transformers; only sizes are small. Hidden 32, two decoder layers, pictures of 16 to
64 pixels. Weights are spread four times wider than the default, so that answers depend on pictures and places.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import GenerationConfig

from tests.fakes.families import templates
from tests.fakes.families.tokenizers import byte_level, word_marks, wrapped

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
_CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 8,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


@dataclass(frozen=True)
class Parts:
    """What a folder is made of."""

    config: Any
    model: type
    processor: str
    """Name of the processor class."""
    tokenizer: Any
    image_processor: Any
    settings: dict[str, Any]
    """The processor's own settings."""
    template: str | None
    video: dict[str, Any] | None = None
    """Settings of the video processor, where the family has one."""


def llava() -> Parts:
    tok = wrapped(
        word_marks(["<unk>", "<s>", "</s>", "<pad>", "<image>"], prefix=True),
        bos="<s>", eos="</s>", pad="<pad>", start=True, image_token="<image>",
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_CLIP, image_size=16, patch_size=8),
        text_config=hf.LlamaConfig(**_TEXT, **_ids(tok)),
        image_token_index=tok.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    pictures = hf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return Parts(config, hf.LlavaForConditionalGeneration, "LlavaProcessor", tok, pictures, settings, templates.LLAVA)


def llava_next() -> Parts:
    tok = wrapped(
        word_marks(["<unk>", "<s>", "</s>", "<pad>", "<image>"], prefix=True),
        bos="<s>", eos="</s>", pad="<pad>", start=True, image_token="<image>",
    )  # fmt: skip
    grid = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**_CLIP, image_size=16, patch_size=8),
        text_config=hf.MistralConfig(**_TEXT, sliding_window=None, **_ids(tok)),
        image_token_index=tok.image_token_id,
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
    )
    pictures = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=grid
    )
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    model = hf.LlavaNextForConditionalGeneration
    return Parts(config, model, "LlavaNextProcessor", tok, pictures, settings, templates.LLAVA_NEXT)


def llava_onevision() -> Parts:
    tok = wrapped(
        byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]),
        bos=None, eos="<|im_end|>", pad="<|endoftext|>", image_token="<image>", video_token="<video>",
    )  # fmt: skip
    grid = [[16, 16], [16, 32], [32, 16], [32, 32], [16, 48], [48, 16]]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**_siglip(), image_size=16, patch_size=4, vision_use_head=False),
        text_config=hf.Qwen2Config(**_TEXT, **_ids(tok)),
        image_token_index=tok.image_token_id,
        video_token_index=tok.video_token_id,
        image_grid_pinpoints=grid,
    )
    size = {"height": 16, "width": 16}
    pictures = hf.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grid)
    settings = {"num_image_tokens": 16, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": size}
    model = hf.LlavaOnevisionForConditionalGeneration
    return Parts(config, model, "LlavaOnevisionProcessor", tok, pictures, settings, templates.LLAVA_ONEVISION, video)


_QWEN = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def _qwen() -> tuple[Any, Any, dict[str, int], dict[str, Any]]:
    """Tokenizer, picture processor, the config's token ids and the video processor's settings of the Qwen-VL line."""
    tok = wrapped(byte_level(_QWEN), bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    limits = {"min_pixels": 8 * 8, "max_pixels": 24 * 24, "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    ids = {key: tok.convert_tokens_to_ids(token) for key, token in names.items()}
    return tok, hf.Qwen2VLImageProcessorPil(**limits), ids, {"video_processor_type": "Qwen2VLVideoProcessor", **limits}


def qwen2_vl() -> Parts:
    tok, pictures, ids, video = _qwen()
    config = hf.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4},
        text_config={**_TEXT, **_ids(tok), "rope_parameters": _ROPE},
        tie_word_embeddings=False,
        **ids,
    )
    model = hf.Qwen2VLForConditionalGeneration
    return Parts(config, model, "Qwen2VLProcessor", tok, pictures, {}, templates.QWEN2, video)


def qwen2_5_vl() -> Parts:
    tok, pictures, ids, video = _qwen()
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
            "window_size": 16, "out_hidden_size": 32, "fullatt_block_indexes": [1],
        },
        text_config={**_TEXT, **_ids(tok), "rope_parameters": _ROPE},
        tie_word_embeddings=False,
        **ids,
    )  # fmt: skip
    model = hf.Qwen2_5_VLForConditionalGeneration
    return Parts(config, model, "Qwen2_5_VLProcessor", tok, pictures, {}, templates.QWEN2, video)


def qwen3_vl() -> Parts:
    tok, pictures, ids, video = _qwen()
    config = hf.Qwen3VLConfig(
        vision_config={
            "depth": 3, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
        },
        text_config={
            **_TEXT, "num_hidden_layers": 3, "head_dim": 8, **_ids(tok),
            "rope_parameters": {**_ROPE, "mrope_interleaved": True},
        },
        tie_word_embeddings=False,
        **ids,
    )  # fmt: skip
    model = hf.Qwen3VLForConditionalGeneration
    video = {**video, "video_processor_type": "Qwen3VLVideoProcessor"}
    return Parts(config, model, "Qwen3VLProcessor", tok, pictures, {}, templates.QWEN3, video)


def internvl() -> Parts:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
    tok = wrapped(
        byte_level(specials), bos=None, eos="<|im_end|>", pad="<|endoftext|>", start_image_token="<img>",
        end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>",
    )  # fmt: skip
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=(16, 16),
            patch_size=(4, 4),
        ),
        text_config=hf.Qwen2Config(**_TEXT, **_ids(tok)),
        image_token_id=tok.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    size = {"height": 16, "width": 16}
    pictures = hf.GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, max_patches=3)
    video = {"video_processor_type": "InternVLVideoProcessor", "size": size}
    model, settings = hf.InternVLForConditionalGeneration, {"image_seq_length": 4}
    return Parts(config, model, "InternVLProcessor", tok, pictures, settings, templates.INTERNVL, video)


_TILES = [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
_AROUND = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]


def smolvlm() -> Parts:
    tok = wrapped(
        byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_AROUND, *_TILES]),
        bos="<|im_start|>", eos="<end_of_utterance>", pad="<|im_end|>", image_token="<image>",
        fake_image_token="<fake_token_around_image>", global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )  # fmt: skip
    config = hf.SmolVLMConfig(
        vision_config={**_siglip(), "image_size": 16, "patch_size": 4},
        text_config=hf.LlamaConfig(**_TEXT, **_ids(tok)),
        image_token_id=tok.image_token_id,
        pad_token_id=tok.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    size = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    pictures = hf.SmolVLMImageProcessorPil(**size)
    video = {"video_processor_type": "SmolVLMVideoProcessor", "num_frames": 4, "fps": 1, **size}
    model = hf.SmolVLMForConditionalGeneration
    return Parts(config, model, "SmolVLMProcessor", tok, pictures, {"image_seq_len": 4}, templates.SMOLVLM, video)


def idefics3() -> Parts:
    tok = wrapped(
        byte_level(["<|begin_of_text|>", "<|end_of_text|>", *_AROUND, *_TILES]),
        bos="<|begin_of_text|>", eos="<|end_of_text|>", pad="<|end_of_text|>", start=True,
    )  # fmt: skip
    config = hf.Idefics3Config(
        vision_config={**_siglip(), "image_size": 16, "patch_size": 4},
        text_config=hf.LlamaConfig(**_TEXT, **_ids(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    pictures = hf.Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    model = hf.Idefics3ForConditionalGeneration
    return Parts(config, model, "Idefics3Processor", tok, pictures, {"image_seq_len": 4}, templates.IDEFICS3)


_GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>"]


def gemma3() -> Parts:
    turns = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    tok = wrapped(
        word_marks([*_GEMMA, *turns], prefix=False), bos="<bos>", eos="<eos>", pad="<pad>", start=True,
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>",
    )  # fmt: skip
    config = hf.Gemma3Config(
        vision_config={**_siglip(), "image_size": 16, "patch_size": 4, "vision_use_head": False},
        text_config={**_TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 512, **_ids(tok)},
        mm_tokens_per_image=4,
        boi_token_index=tok.boi_token_id,
        eoi_token_index=tok.eoi_token_id,
        image_token_index=tok.image_token_id,
        tie_word_embeddings=True,
    )
    pictures = hf.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    model, settings = hf.Gemma3ForConditionalGeneration, {"image_seq_length": 4}
    return Parts(config, model, "Gemma3Processor", tok, pictures, settings, templates.GEMMA3)


def paligemma() -> Parts:
    tok = wrapped(
        word_marks([*_GEMMA, "<image>"], prefix=False), bos="<bos>", eos="<eos>", pad="<pad>", image_token="<image>"
    )
    tok.add_tokens([f"<loc{i:0>4}>" for i in range(1024)] + [f"<seg{i:0>3}>" for i in range(128)])
    config = hf.PaliGemmaConfig(
        vision_config={**_siglip(), "image_size": 16, "patch_size": 8, "vision_use_head": False, "projection_dim": 32},
        text_config={**_TEXT, "model_type": "gemma", "head_dim": 8, "num_image_tokens": 4, **_ids(tok)},
        image_token_index=tok.image_token_id,
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(tok),
        tie_word_embeddings=True,
    )
    pictures = hf.SiglipImageProcessorPil(size={"height": 16, "width": 16}, image_seq_length=4)
    model = hf.PaliGemmaForConditionalGeneration
    return Parts(config, model, "PaliGemmaProcessor", tok, pictures, {}, None)


def mllama() -> Parts:
    heads = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>", "<|finetune_right_pad_id|>"]
    made = byte_level(["<|begin_of_text|>", "<|end_of_text|>", *heads])
    size = made.get_vocab_size()
    made.add_special_tokens(["<|image|>"])  # its id is the size of the vocabulary: the embeddings have eight more rows
    tok = wrapped(
        made, bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<|finetune_right_pad_id|>", start=True,
        image_token="<|image|>",
    )  # fmt: skip
    text = {**_TEXT, **_ids(tok), "vocab_size": size, "cross_attention_layers": [1], "num_hidden_layers": 3}
    config = hf.MllamaConfig(
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_global_layers": 1,
            "attention_heads": 2, "image_size": 16, "patch_size": 8, "vision_output_dim": 32,
            "intermediate_layers_indices": [0], "max_num_tiles": 4,
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        },
        text_config=text,
        image_token_index=tok.image_token_id,
    )  # fmt: skip
    pictures = hf.MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=4)
    model = hf.MllamaForConditionalGeneration
    return Parts(config, model, "MllamaProcessor", tok, pictures, {}, templates.MLLAMA)


FAMILIES: dict[str, Callable[[], Parts]] = {
    f.__name__: f
    for f in (
        llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, smolvlm, idefics3, gemma3,
        paligemma, mllama,
    )
}  # fmt: skip


def write(name: str, folder: Path, *, seed: int = 0) -> Path:
    """The folder of a family: weights, configs, tokenizer, picture processor, template, as hubs hold them."""
    parts = FAMILIES[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = parts.model(parts.config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key.endswith("mm_input_projection_weight"):
                    parameter.normal_(std=0.1)  # Gemma 3: zero at birth, so that pictures would have no effect
                if parameter.ndim > 1 and not (
                    getattr(parts.config, "tie_word_embeddings", False) and "embed_tokens" in key
                ):
                    parameter.mul_(4.0)
                if key.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate", "gate_ffn", "gate_attn")):
                    parameter.fill_(0.7)  # zero at birth: the pictures would have no effect
    eos = parts.tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=parts.tokenizer.pad_token_id)
    model.save_pretrained(folder)
    parts.tokenizer.save_pretrained(folder)
    parts.image_processor.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": parts.processor, **parts.settings}))
    if parts.video is not None:
        (folder / "video_preprocessor_config.json").write_text(json.dumps(parts.video))
    if parts.template is not None:
        (folder / "chat_template.jinja").write_text(parts.template)
    return folder


def _ids(tok: Any) -> dict[str, int | None]:
    return {
        "vocab_size": len(tok),
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }


def _siglip() -> dict[str, int]:
    return {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
