"""A guard as a folder: detector, phrases, settings, and a loader that plain transformers answers with.

``guard.json``, ``guard.safetensors``, ``detector.py``, ``guarding.py`` and ``loader.py``; the model it guards is exported apart
(``--as merged``). What was written is reloaded and its detector compared with the run's on random prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mcit.analytic import detector
from mcit.core.errors import ConfigError, StateError
from mcit.core.files import read_bytes, read_json, write_json, write_text
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.core.types import JsonDict
from mcit.evals import guarding
from mcit.evals.filters.guard import Guard, read_detector
from mcit.export import guarded


def write(home: Path | None, filters: list[Any], folder: Path) -> JsonDict:
    """Write and reload; returns what export.json says. `home` is what the method left, `filters` are the run's.

    Raises StateError for a run without a guard, ConfigError for hidden states that a plain model does not hand out.
    """
    if home is None:
        fix = "list the method guard in a stage, or export something else"
        raise StateError("no stage so far left a guard", where="--as guard", fix=fix)
    given = next((one for one in filters if isinstance(one, Mapping) and one.get("use") == "guard"), {})
    settings = Guard.Config(**{key: value for key, value in given.items() if key != "use"})
    about = read_json(home / "state.json")["state"]
    if about["layer"] != "last":
        what = f"prompts are told by layer '{about['layer']}', which plain transformers counts in another way"
        raise ConfigError(what, where="guard.layer", fix="use layer: last for an export")
    tensors = read_detector(home, about)
    restriction = {
        "hard": settings.beta,
        **{key: getattr(settings, key) for key in ("delta", "kappa", "infinite", "window")},
    }
    own = {key: getattr(settings, key) for key in ("threshold", "beams", "refusal")}
    record = {"phrases": about["phrases"], "mean": about["mean"], "restriction": restriction, **own}
    write_json(folder / "guard.json", record)
    save_tensors(folder / "guard.safetensors", tensors)
    for name, module in (("detector.py", detector), ("guarding.py", guarding), ("loader.py", guarded)):
        write_text(folder / name, read_bytes(Path(str(module.__file__))).decode())
    again = load_tensors(folder / "guard.safetensors")
    width = len(tensors["weight"]) - 1 if "weight" in tensors else len(tensors["shift"])
    probe_BD = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    found = (detector.probability(tensors, probe_BD), detector.probability(again, probe_BD))
    apart = float((found[0] - found[1]).abs().max())
    if apart:
        raise StateError(f"the reloaded detector differs by {apart:.3g}", where=str(folder), fix="export again")
    return {"relative_to": "merged", "phrases": len(about["phrases"]), "difference": apart, "difference_share": apart}
