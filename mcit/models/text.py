"""Language models without pictures: which auto class a folder asks for, and a tokenizer in the place of a processor.

Papers on continual tuning of language models (HFT, GeRe) can then be run on the models they used, by the same loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)


def auto_class_of(config: Any) -> Any:
    """``AutoModelForImageTextToText``, or ``AutoModelForCausalLM`` where the config is of a language model only.

    Code that a folder brings itself is taken for an image-text-to-text model.
    """
    text_only = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForCausalLM if text_only else AutoModelForImageTextToText


class TextProcessor:
    """What the encoder needs of a processor, from a tokenizer alone."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template

    def __call__(self, *, images: Any, text: list[str], return_text_replacement_offsets: bool, **settings: Any) -> Any:
        """Token ids of `text`. Raises ValueError when there are images."""
        if images:
            raise ValueError("the base is a language model and takes no pictures")
        return self.tokenizer(text, **settings)

    def apply_chat_template(self, *args: Any, **settings: Any) -> Any:
        """The tokenizer's own."""
        return self.tokenizer.apply_chat_template(*args, **settings)

    def save_pretrained(self, folder: Path | str) -> Any:
        """Writes the tokenizer's files."""
        return self.tokenizer.save_pretrained(folder)
