"""Hand a merged export to lmms-eval or VLMEvalKit.

    mcit export RUN --stage 4 --as merged --out m
    python scripts/harness.py lmms-eval m --tasks mme,pope [--run]
    python scripts/harness.py vlmevalkit m --tasks MMBench_DEV_EN_V11:ImageMCQDataset [--kit VLMEvalKit] [--run]

prints the command (for VLMEvalKit also writes its config beside the export), or runs it with --run. The harness must be
installed: neither is a dependency. lmms-eval's model ``huggingface`` takes any folder that transformers loads, with the
export's own chat template. VLMEvalKit has a class per family, with prompts of its own; families without one are refused.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from mcit.core.config import suggestion
from mcit.core.errors import ConfigError, McitError, StateError
from mcit.core.files import read_json, write_json

CLASSES = {
    "gemma3": "Gemma3",
    "idefics3": "IDEFICS2",
    "llava_next": "LLaVA_Next",
    "llava_onevision": "LLaVA_OneVision_HF",
    "mllama": "llama_vision",
    "paligemma": "PaliGemma",
    "qwen2_vl": "Qwen2VLChat",
    "qwen2_5_vl": "Qwen2VLChat",
    "qwen3_vl": "Qwen3VLChat",
    "smolvlm": "SmolVLM",
}
"""VLMEvalKit's class of each model type."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("harness", choices=("lmms-eval", "vlmevalkit"))
    parser.add_argument("export", type=Path, help="folder of mcit export --as merged")
    parser.add_argument("--tasks", required=True, help="comma-separated; for VLMEvalKit as data set:class")
    parser.add_argument("--out", type=Path, help="where results go (default: EXPORT-<harness>)")
    parser.add_argument("--kit", type=Path, default=Path("VLMEvalKit"), help="checkout of VLMEvalKit (its run.py)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--run", action="store_true", help="run it instead of printing it")
    args = parser.parse_args(argv)
    try:
        out = args.out or args.export.parent / f"{args.export.name}-{args.harness}"
        command = command_of(args.harness, args.export, args.tasks.split(","), out=out, kit=args.kit, batch=args.batch)
    except McitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(shlex.join(command))
    return subprocess.run(command, check=False).returncode if args.run else 0


def command_of(harness: str, export: Path, tasks: list[str], *, out: Path, kit: Path, batch: int) -> list[str]:
    """The command line of the harness; writes VLMEvalKit's config to ``<out>.json``.

    Raises StateError if `export` is no merged export, ConfigError for what the harness does not take.
    """
    family = model_type(export)
    where = str(export.resolve())
    if harness == "lmms-eval":
        given = {"--model": "huggingface", "--model_args": f"pretrained={where}", "--tasks": ",".join(tasks)}
        rest = ["--batch_size", str(batch), "--log_samples", "--output_path", str(out)]
        return [sys.executable, "-m", "lmms_eval", *(part for pair in given.items() for part in pair), *rest]
    if family not in CLASSES:
        fix = suggestion(family, CLASSES)
        raise ConfigError(
            f"VLMEvalKit has no class for model type '{family}'", where=where, fix=f"use lmms-eval; {fix}"
        )
    pairs = [task.partition(":")[::2] for task in tasks]
    bad = [name for name, kind in pairs if not kind]
    if bad:
        fix = "for example MMBench_DEV_EN_V11:ImageMCQDataset; classes are in vlmeval/dataset/__init__.py"
        raise ConfigError(f"'{bad[0]}' names no class of its data set", where="--tasks", fix=fix)
    config = out.with_name(f"{out.name}.json")
    model = {export.name: {"class": CLASSES[family], "model_path": where}}
    write_json(config, {"model": model, "data": {name: {"class": kind, "dataset": name} for name, kind in pairs}})
    return [sys.executable, str(kit / "run.py"), "--config", str(config.resolve()), "--work-dir", str(out)]


def model_type(export: Path) -> str:
    """``model_type`` of a merged export's config."""
    record = export / "export.json"
    if not record.is_file() or read_json(record).get("kind") != "merged":
        fix = "write one with mcit export RUN --stage K --as merged"
        raise StateError("is no merged export", where=str(export), fix=fix)
    return str(json.loads((export / "config.json").read_text())["model_type"])


if __name__ == "__main__":
    sys.exit(main())
