"""Run with ``python -I``: exports of families by plain transformers and peft. Arguments: bases by name as JSON, a folder."""

import json
import sys
from pathlib import Path

sys.modules["mcit"] = None  # every import of it raises ModuleNotFoundError, as where it is not installed

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoTokenizer  # noqa: E402

for name, base in json.loads(sys.argv[1]).items():
    home = Path(sys.argv[2]) / name
    batch = load_file(home / "batch.safetensors")
    out = {"real": batch["attention_mask"]}
    with torch.no_grad():
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
        out["base"] = model(**batch).logits
        out["adapter"] = PeftModel.from_pretrained(model, home / "adapter").eval()(**batch).logits
        merged = AutoModelForImageTextToText.from_pretrained(home / "merged", dtype=torch.float32).eval()
        out["merged"] = merged(**batch).logits
    assert len(AutoTokenizer.from_pretrained(home / "merged")) > 100
    save_file({key: value.contiguous() for key, value in out.items()}, home / "logits.safetensors")
