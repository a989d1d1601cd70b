"""Answers of a guarded model by plain transformers; an export has this file as ``loader.py``. Needs no mcit.

``python loader.py MODEL ROWS.json`` answers rows ``{"id", "question", "images": [paths]}``; MODEL is a merged export of the
run, or its base where nothing was trained. Beside it lie ``detector.py``, ``guarding.py``, ``guard.json`` and
``guard.safetensors``.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessor, LogitsProcessorList

Rows = list[dict[str, Any]]


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Guarded:
    """A model whose answers about what is to be forgotten are restricted; all others are its own."""

    def __init__(self, model: str, folder: Path = Path(__file__).parent) -> None:
        self.about = json.loads((folder / "guard.json").read_text())
        self.tensors = load_file(folder / "guard.safetensors")
        self.detector, guarding = _module(folder / "detector.py"), _module(folder / "guarding.py")
        self.model: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        self.processor: Any = AutoProcessor.from_pretrained(model, backend="pil", padding_side="left")
        tokenizer, settings = self.processor.tokenizer, self.about["restriction"]
        self.rule = guarding.Restriction(
            self.about["phrases"],
            encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
            decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            embeddings=self.model.get_input_embeddings().weight.detach(),
            **settings,
        )

    def inputs(self, rows: Rows) -> Any:
        """Prompts padded on the left, pictures in front of the text."""
        images = [[Image.open(path).convert("RGB") for path in row.get("images", [])] for row in rows]
        texts = [[{"type": "text", "text": row["question"].replace("<image>", "").strip()}] for row in rows]
        chats = [
            [{"role": "user", "content": [{"type": "image"} for _ in i] + t}]
            for i, t in zip(images, texts, strict=True)
        ]
        prompts = [self.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        bos = self.processor.tokenizer.bos_token
        given: dict[str, Any] = {"images": images} if any(images) else {}
        given["add_special_tokens"] = not (bos and prompts[0].startswith(bos))
        return self.processor(text=prompts, padding=True, return_tensors="pt", **given)

    @torch.no_grad()
    def probabilities(self, rows: Rows) -> torch.Tensor:
        """That each prompt asks for what is to be forgotten, (B,)."""
        inputs = self.inputs(rows)
        hidden_BTD = self.model(**inputs, output_hidden_states=True).hidden_states[-1].float()
        mask_BT = inputs["attention_mask"].bool()
        mean_BD = (hidden_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)
        found: torch.Tensor = self.detector.probability(
            self.tensors, mean_BD if self.about["mean"] else hidden_BTD[:, -1]
        )
        return found

    @torch.no_grad()
    def answer(self, rows: Rows, **settings: Any) -> list[tuple[bool, str]]:
        """Whether the guard acted, and the text, of each row."""
        acted = [bool(p >= self.about["threshold"]) for p in self.probabilities(rows)]
        texts = self._write(rows, settings)
        guarded = [k for k, hit in enumerate(acted) if hit]
        if guarded:
            length = self.inputs([rows[k] for k in guarded])["input_ids"].shape[1]
            hook = LogitsProcessorList([_Hook(self.rule, length)])
            more = {**settings, "num_beams": self.about["beams"], "logits_processor": hook}
            for k, text in zip(guarded, self._write([rows[k] for k in guarded], more), strict=True):
                texts[k] = self.about["refusal"] if not text or self.rule.says(text) else text
        return list(zip(acted, texts, strict=True))

    def _write(self, rows: Rows, settings: dict[str, Any]) -> list[str]:
        inputs = self.inputs(rows)
        made = self.model.generate(**inputs, do_sample=False, **settings)
        texts = self.processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]


class _Hook(LogitsProcessor):
    def __init__(self, rule: Any, prompt: int) -> None:
        self._rule, self._prompt = rule, prompt

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self._rule.scores(scores, input_ids[:, self._prompt :].tolist())


if __name__ == "__main__":
    print(json.dumps(Guarded(sys.argv[1]).answer(json.loads(Path(sys.argv[2]).read_text()), max_new_tokens=64)))
