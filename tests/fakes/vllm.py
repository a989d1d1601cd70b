"""Stands for the package vllm: the part of its interface that mcit uses, answered by transformers on the CPU.

What it checks is what vLLM would trip over: keyword arguments, prompts with one image token per picture, pictures beside them.
"""

from types import SimpleNamespace

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

__version__ = "0.0-fake"


class SamplingParams:
    def __init__(self, *, temperature, max_tokens, stop_token_ids, detokenize):
        assert temperature == 0.0 and detokenize is False
        self.max_tokens, self.stop_token_ids = max_tokens, stop_token_ids


class LLM:
    started = []
    """One entry of keyword arguments per engine."""
    wrong = frozenset()
    """Numbers of generated rows, counted over all calls of an engine, whose first token is changed."""
    expand = 0
    """Image tokens too many per picture."""

    def __init__(
        self, *, model, dtype, gpu_memory_utilization, max_model_len, seed, generation_config, trust_remote_code
    ):
        assert 0 < gpu_memory_utilization <= 1 and generation_config == "vllm" and not trust_remote_code
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.processor = AutoProcessor.from_pretrained(model, backend="pil")
        self.image_id = self.model.config.image_token_id
        self.count = 0
        LLM.started.append({"model": model, "dtype": dtype, "max_model_len": max_model_len, "seed": seed})

    def generate(self, prompts, params, use_tqdm):
        return [self._one(prompt, params) for prompt in prompts]

    def _one(self, prompt, params):
        pictures = prompt.get("multi_modal_data", {}).get("image", [])
        ids, inputs = [], {}
        assert prompt["prompt_token_ids"].count(self.image_id) == len(pictures)
        if pictures:
            pixels = self.processor.image_processor(pictures, return_tensors="pt")
            inputs["pixel_values"] = pixels["pixel_values"].to(self.model.dtype)
            size = self.model.get_image_features(**inputs).pooler_output[0].shape[0]
        for token in prompt["prompt_token_ids"]:
            ids += [token] * (size + self.expand) if token == self.image_id else [token]
        asked = torch.tensor([ids])
        if self.expand:
            made = []
        else:
            out = self.model.generate(
                input_ids=asked, attention_mask=torch.ones_like(asked), do_sample=False,
                max_new_tokens=params.max_tokens, eos_token_id=params.stop_token_ids, pad_token_id=0, **inputs,
            )  # fmt: skip
            made = out[0, len(ids) :].tolist()
        if self.count in self.wrong:
            made = [made[0] % 50 + 1, *made[1:]]
        self.count += 1
        return SimpleNamespace(prompt_token_ids=ids, outputs=[SimpleNamespace(token_ids=made)])
