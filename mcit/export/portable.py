"""Answers with a pool of adapters by plain transformers and peft; an export has this file as ``loader.py``. Needs no mcit.

``python loader.py BASE ROWS.json`` answers rows ``{"id", "task", "question", "images": [paths]}``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

Rows = list[dict[str, Any]]


class Pool:
    """The base with all adapters of the folder: one is chosen per row, and all rows are answered in one batch."""

    def __init__(self, base: str, folder: Path = Path(__file__).parent) -> None:
        self.about = json.loads((folder / "pool.json").read_text())
        self.members: list[str] = self.about["members"]
        self.tensors = load_file(folder / "router.safetensors")
        self.code: dict[str, Any] = {}
        exec((folder / "route.py").read_text(), self.code)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
        self.model = PeftModel.from_pretrained(self.model, folder / self.members[0], adapter_name="a0").eval()
        for k, member in enumerate(self.members[1:], start=1):
            self.model.load_adapter(folder / member, adapter_name=f"a{k}")
        self.below = "__base__"  # peft's name for no adapter
        if (folder / "start").is_dir():
            self.below = "start"
            self.model.load_adapter(folder / "start", adapter_name="start")
        self.processor: Any = AutoProcessor.from_pretrained(base, backend="pil", padding_side="left")

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
    def states(self, rows: Rows, member: str | None) -> torch.Tensor:
        """Last hidden state at the last prompt token, (B, D)."""
        names = [self.below if member is None else f"a{self.members.index(member)}"] * len(rows)
        return self.model(**self.inputs(rows), adapter_names=names, output_hidden_states=True).hidden_states[-1][:, -1]

    @torch.no_grad()
    def answer(self, rows: Rows, **settings: Any) -> list[tuple[str, str]]:
        """Member and text of each row."""
        chosen = self.code["route"](rows, self.members, self.about["state"], self.tensors, self.states)
        names, inputs = [f"a{self.members.index(member)}" for member in chosen], self.inputs(rows)
        made = self.model.generate(**inputs, adapter_names=names, do_sample=False, **settings)
        texts = self.processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [(member, text.strip()) for member, text in zip(chosen, texts, strict=True)]


if __name__ == "__main__":
    print(json.dumps(Pool(sys.argv[1]).answer(json.loads(Path(sys.argv[2]).read_text()), max_new_tokens=64)))
