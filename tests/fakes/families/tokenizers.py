"""Tokenizers trained on the spot: byte-level as in Llama 3 and Qwen, or with word-start marks as in Llama 2 and Gemma."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers import processors as post
from transformers import PreTrainedTokenizerFast

TEXT = [
    "What is the shape? Is the circle red? yes no A B C D square circle triangle red green blue",
    "Answer with the option's letter from the given choices directly.",
    "Answer the question using a single word or phrase. USER: ASSISTANT: User: Assistant: user assistant system model",
    "You are a helpful assistant. Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024 [INST] [/INST]",
]


def byte_level(specials: Sequence[str], *, size: int = 60) -> Tokenizer:
    """Byte-level BPE with `size` merges."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _trained(made, specials, size, pre_tokenizers.ByteLevel.alphabet())


def word_marks(specials: Sequence[str], *, size: int = 60, prefix: bool) -> Tokenizer:
    """BPE on words with a mark at their start and byte fallback; with `prefix` a text's first word has one too (Llama 2)."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first" if prefix else "never")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return _trained(made, [*specials, *(f"<0x{value:02X}>" for value in range(256))], size + 100, [])


def _trained(made: Tokenizer, specials: Sequence[str], size: int, alphabet: Sequence[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=len(specials) + len(alphabet) + size,
        initial_alphabet=list(alphabet),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        show_progress=False,
    )
    made.train_from_iterator(TEXT * 4, trainer)
    return made


def wrapped(made: Tokenizer, *, bos: str | None, eos: str, pad: str | None, start: bool = False, **named: str):
    """As transformers uses it; `named` are the family's names for its tokens; `start` puts `bos` in front of every text."""
    if start:
        made.post_processor = post.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=pad, extra_special_tokens=named
    )
