"""A small run with a forget stage and everything that the forgetting kit measures, by the command line."""

import yaml

from mcit.cli.main import main

CONFIG = {
    "name": "forgetful",
    "seed": 1,
    "base": {"family": "tiny", "dtype": "fp32"},
    "engine": {"micro_batch": 4, "workers": 0},
    "defaults": {
        "adapter": {"rank": 4, "alpha": 8, "also_train": []},
        "optim": {"batch": 8, "lr": 2e-2, "warmup": 0},
        "max_steps": 4,
    },
    "stages": [
        {"recipe": "tiny/word"},
        {
            "name": "forget-red",
            "recipe": "tiny/word-retain",
            "forget": "tiny/word-forget",
            "methods": [{"use": "gs_lora", "per_step": 4}],
        },
        {"recipe": "tiny/letter"},
    ],
    "eval": {
        "batch": 8,
        "rows": 4,
        "kit": {
            "rows": 5,
            "four_bit": True,
            "membership": ["loss", "zlib", "min_k", "min_k_plus", "reference", "gradnorm"],
        },
    },
}


def write_config(folder, **changes):
    path = folder / "forgetful.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **changes}))
    return path


def forgetful_run(folder):
    """Folder of the finished run; its config lies beside the runs folder."""
    path = write_config(folder)
    assert main(["run", str(path), "--runs-dir", str(folder / "runs")]) == 0
    (root,) = (folder / "runs").glob("forgetful-*")
    return root
