"""Small real processors: a tokenizer trained on the spot, a picture processor of few pixels, a template per style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers import processors as post
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

TEXT = [
    "What is the shape? Is the circle red? yes no A B C D square circle triangle red green blue",
    "Answer with the option's letter from the given choices directly.",
    "Answer the question using a single word or phrase. USER: ASSISTANT: user assistant system",
]
SPECIALS = [
    "<pad>", "<s>", "</s>", "<unk>", "<image>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip

_PARTS = (
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    # llava-1.5: no marker, answer closed by the tokenizer's end token
    "llava": "{% for m in messages %}{% if m['role'] == 'user' %}USER: " + _PARTS + " {% else %}ASSISTANT: " + _PARTS
    + "</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n" + _PARTS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama3": "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    + _PARTS + "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}",
    # the template of the llava-1.5 conversion: markers around answer and a blank, no end token anywhere
    "marked": "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ c['text'] + ' ' }}{% endgeneration %}{% else %}{{ c['text'] + ' ' }}{% endif %}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    # markers that enclose end token and line break
    "marked_chatml": "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}" + _PARTS
    + "<|im_end|>\n{% endgeneration %}{% else %}" + _PARTS + "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "no_end": "{% for m in messages %}{% if m['role'] == 'user' %}Question: " + _PARTS + "\n{% else %}Answer: " + _PARTS
    + "\n{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}",
    # a text-only template that joins strings
    "string": "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}  # fmt: skip


def byte_level_tokenizer(*, size: int = 420) -> Tokenizer:
    """A byte-level BPE tokenizer, as GPT-2, Llama 3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIALS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return tokenizer


def metaspace_tokenizer(*, size: int = 300, split: bool = True) -> Tokenizer:
    """A BPE tokenizer with word-start marks and byte fallback, as Llama 2 has; it puts <s> in front.

    With `split` off it learns merges across words, so that an answer melts into its prompt: such rows must be refused.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=split)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size + 256, special_tokens=SPECIALS + pieces, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.post_processor = post.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def wrapped(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    """A transformers tokenizer with this project's test specials."""
    defaults = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "extra_special_tokens": {"image_token": "<image>"},
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**defaults, **settings})


def make_processor(style: str = "llava", *, kind: str = "bytes", pixels: int = 32, patch: int = 16) -> LlavaProcessor:
    """A LlavaProcessor of 32 x 32 pictures, (32 / 16)^2 = 4 image tokens each.

    `kind` of tokenizer: bytes, metaspace or melting (merges across words).
    """
    tokenizer = wrapped(byte_level_tokenizer() if kind == "bytes" else metaspace_tokenizer(split=kind == "metaspace"))
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels}
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATES[style],
    )


def tiny_processor(path: Path | str, style: str = "llava", **settings: Any) -> LlavaProcessor:
    """`make_processor`, saved in a folder as a model has it."""
    processor = make_processor(style, **settings)
    processor.save_pretrained(str(path))
    return processor
