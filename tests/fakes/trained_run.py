"""Finished runs of the tiny model whose stages were not trained but drawn: every carry policy in milliseconds."""

from types import SimpleNamespace

import torch

from mcit.core.files import sha256_file, write_json
from mcit.core.schema import RunConfig
from mcit.core.stored import write_sealed
from mcit.core.tensorfile import save_tensors
from mcit.models import adapters
from mcit.models.adapterfile import AdapterFile, LoraPair, write_adapter
from mcit.models.basefiles import base_digest
from mcit.models.lineage import Lineage, delta_digest, lineage_record, read_lineage
from mcit.models.load import load_base, materialize
from mcit.models.units import lora_targets
from mcit.runs.run import config_digest, open_run
from tests.fakes.run_dir import environment, plan_record, rejection

PROJECTOR = tuple(f"model.multi_modal_projector.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias"))


def make_run(tmp_path, carries, *, dtype="fp32", full=PROJECTOR, rank=4, base=None, rejected=()):
    """A committed stage per entry of `carries` (merge, keep, stack, none); returns the run and the AdapterFiles.

    Stages numbered in `rejected` were rejected at their gates, and the later ones trained without them.
    """
    config = RunConfig.model_validate(
        {
            "name": "drawn",
            "base": {"family": "tiny", "dtype": dtype, **(base or {})},
            "stages": [
                {"recipe": f"r{i}", "adapter": {"kind": "none" if c == "none" else "lora", "carry": c}}
                for i, c in enumerate(carries)
            ],
        }
    )
    path = materialize(config.base)
    folders = [f"{i + 1:02d}-r{i}" for i in range(len(carries))]
    resolved = config.model_dump(mode="json")
    run = open_run(
        SimpleNamespace(config=config, digest=config_digest(resolved)),
        runs_dir=tmp_path / "runs",
        config_text="drawn",
        resolved=resolved,
        plan_json={
            **plan_record([[f"r{i}"] for i in range(len(carries))], names=[f"r{i}" for i in range(len(carries))]),
            "name": "drawn",
            "digest": config_digest(resolved),
            "base_sha256": base_digest(path),
            "chat_template_sha256": sha256_file(config.base.chat_template) if config.base.chat_template else None,
        },
        environment=environment(),
    )
    trust, attention = config.base.trust_remote_code, config.base.attention
    model = load_base(path, trust_remote_code=trust, attention=attention)
    files = []
    for i, (folder, carry) in enumerate(zip(folders, carries, strict=True)):
        files.append(drawn(model, seed=i, full=full, rank=rank, lora=carry != "none"))
        if i + 1 in rejected:
            write_sealed(run.layout.gate(folder), rejection(folder))
            continue
        below = [f for k, f in enumerate(folders[:i], 1) if k not in rejected]
        _commit(run, folder, files[-1], carry, below=below, path=path, names=list(model.state_dict()))
    return run, files


def drawn(model, *, seed, full=PROJECTOR, rank=4, lora=True):
    """Random pairs on every language linear, and moved copies of the `full` tensors."""
    generator = torch.Generator().manual_seed(100 + seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    pairs = {}
    for name in lora_targets(model, "language-linear") if lora else ():
        out, inner = model.get_submodule(name).weight.shape
        pairs[name] = LoraPair(0.1 * noise(rank, inner), 0.1 * noise(out, rank), 2.0)
    parameters = adapters.base_parameters(model)
    moved = {n: parameters[n].detach().float() + 0.05 * noise(*parameters[n].shape) for n in full}
    if not lora:
        moved.update(
            {n: p.detach().float() + 0.05 * noise(*p.shape) for n, p in parameters.items() if "language_model" in n}
        )
    return AdapterFile(pairs, moved)


def _commit(run, folder, file, carry, *, below, path, names):
    sha = base_digest(path)
    lineage = read_lineage([run.layout.stage(f) for f in below], base=str(path), base_sha256=sha)
    assert isinstance(lineage, Lineage)

    def write(out):
        if carry == "none":
            save_tensors(out / "weights" / "model.safetensors", file.full)
        else:
            unnamed = write_adapter(out / "adapter", file, base=str(path), base_sha256=sha, known=names)
            if unnamed:
                save_tensors(out / "extra.safetensors", {n: file.full[n] for n in unnamed})
        kind = "none" if carry == "none" else "lora"
        write_json(out / "lineage.json", lineage_record(lineage, kind=kind, carry=carry, digest=delta_digest(out)))

    with run.draft(folder) as draft:
        draft.commit(write, {"steps": 1})


def effective(files, carries):
    """By hand: {module: summed delta} and the last value of every full tensor; a kept adapter is in its successor."""
    deltas, full = {}, {}
    for i, (file, carry) in enumerate(zip(files, carries, strict=True)):
        full.update(file.full)
        if carry == "keep" and i < len(files) - 1:
            continue
        for name, pair in file.lora.items():
            deltas[name] = deltas.get(name, 0) + pair.scale * pair.B_OR @ pair.A_RI
    return deltas, full


def by_hand(base, files, carries):
    """The tiny model with `effective` weights written into it."""
    deltas, full = effective(files, carries)
    parameters = adapters.base_parameters(base)
    with torch.no_grad():
        for name, delta in deltas.items():
            parameters[name + ".weight"].add_(delta)
        for name, value in full.items():
            parameters[name].copy_(value)
    return base
