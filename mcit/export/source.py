"""What an export is made from: a run's base and the chain of its first K stages, checked file by file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcit.core.errors import StateError
from mcit.core.schema import BaseConfig, RunConfig
from mcit.export.copied import Template
from mcit.models import adapters
from mcit.models.adapterfile import AdapterFile, concat, read_adapter
from mcit.models.basefiles import base_digest
from mcit.models.lineage import Lineage, apply_lineage, apply_start, read_lineage
from mcit.models.load import load_base, materialize
from mcit.models.quant import QUANTISED, runs_bf16
from mcit.runs.gates import rejected, require_open
from mcit.runs.run import Run


@dataclass(frozen=True)
class Source:
    """Base and stages 1..K of a run."""

    base: BaseConfig
    path: Path
    """Local folder of the base."""
    lineage: Lineage
    device: torch.device
    run: str
    """Name of the run's folder."""
    template: Template | None = None
    """What took the place of the base's chat template."""

    @property
    def base_name(self) -> str:
        """What others load the base by: its hub id, or its folder here."""
        name = self.base.model
        hub = name is not None and not Path(name).expanduser().exists()
        return str(name) if hub else str(self.path)

    @property
    def stage(self) -> int:
        """K."""
        return len(self.lineage.deltas)

    @property
    def bf16(self) -> bool:
        """Whether passes run in bf16, so that differences are rounding and not nothing."""
        return runs_bf16(self.base.dtype, self.device)

    @property
    def quantised(self) -> bool:
        """Whether the run was trained on quantised weights, which nothing can be merged into."""
        return self.base.dtype in QUANTISED

    def full(self) -> Source:
        """The same stages on the base in bf16, where the run's own is quantised; otherwise this one."""
        return replace(self, base=self.base.model_copy(update={"dtype": "bf16"})) if self.quantised else self

    def plain_base(self) -> Any:
        """The base as anybody would load it."""
        return load_base(
            self.path,
            dtype=self.base.dtype,
            double_quant=self.base.double_quant,
            attention=self.base.attention,
            trust_remote_code=self.base.trust_remote_code,
            device=self.device,
        )

    def start(self, model: nn.Module) -> AdapterFile | None:
        """The adapter that the run began with, if any; names as in `model`."""
        if not self.base.adapter:
            return None
        return read_adapter(Path(self.base.adapter), known=frozenset(state_names(model)))

    def model(self, stages: int) -> Any:
        """The trained model after so many stages, adapters that stay live attached."""
        model = self.plain_base()
        start = self.start(model)
        if start is not None:
            apply_start(model, start)
        apply_lineage(model, self.below(stages))
        return model

    def below(self, stages: int) -> Lineage:
        """Lineage of the first `stages` stages."""
        return Lineage(self.lineage.base, self.lineage.base_sha256, self.lineage.deltas[:stages])

    def joined(self, model: nn.Module) -> AdapterFile:
        """The effect of stages 1..K (and of the starting adapter) on the original base as one adapter.

        Raises StateError when one of the stages is no adapter.
        """
        start = self.start(model)
        files = [start] if start is not None else []
        for position, delta in enumerate(self.lineage.deltas):
            require_adapter(delta.kind, delta.folder)
            file = delta.read()
            files.append(AdapterFile({}, file.full) if self.lineage.superseded(position) else file)
        return concat(files)


def open_source(run: Run, stage: int) -> Source:
    """Check stages 1..`stage` of a run and its base.

    Raises StateError when a stage is missing or was changed, or when the base is another one now, GateStopped for a stage that
    was set aside.
    """
    config = RunConfig.model_validate(run.config())
    folders = run.stage_folders()
    if not 1 <= stage <= len(folders):
        raise StateError(
            f"the run has {len(folders)} stages, there is no stage {stage}",
            where=str(run.layout.root),
            fix="choose with --stage",
        )
    without = rejected(run)
    if folders[stage - 1] in without:
        what, fix = f"stage {folders[stage - 1]} was rejected at its gate", "choose another one with --stage"
        raise StateError(what, where=str(run.layout.root), fix=fix)
    standing = [folder for folder in folders[:stage] if folder not in without]
    for folder in standing:
        if not run.is_committed(folder):
            require_open(run, folder)
            root = str(run.layout.root)
            fix = f"finish it with: mcit resume {shlex.quote(root)}"
            raise StateError(f"stage {folder} is not finished", where=root, fix=fix)
        run.verify(folder)
    path = materialize(config.base)
    lineage = read_lineage([run.stage(folder) for folder in standing], base=str(path), base_sha256=base_digest(path))
    wanted = config.engine.device
    cuda = wanted == "cuda" or wanted == "auto" and torch.cuda.is_available()
    given = config.base.chat_template
    template = Template(Path(given).expanduser(), str(run.plan()["chat_template_sha256"])) if given else None
    device = torch.device("cuda" if cuda else "cpu")
    return Source(config.base, path, lineage, device, run.layout.root.name, template)


def require_adapter(kind: str, folder: Path) -> None:
    """Raise StateError when a stage was full fine-tuning and so cannot be part of an adapter."""
    if kind == "none":
        raise StateError(
            "the stage trained whole weights, which no adapter can hold",
            where=str(folder),
            fix="export it with --as merged",
        )


def state_names(model: nn.Module) -> list[str]:
    """Names of all parameters and persistent buffers as they are without adapters."""
    return [n.replace(".base_layer.", ".") for n in model.state_dict() if ".lora_" not in n]


def with_siblings(file: AdapterFile, model: nn.Module) -> AdapterFile:
    """`file` with the frozen tensors that share a module with a trained one: PEFT saves modules, not tensors."""
    parents = {name.rpartition(".")[0] for name in file.full}
    base = adapters.base_parameters(model)
    beside = {n: p.detach().float().cpu() for n, p in base.items() if n.rpartition(".")[0] in parents}
    return AdapterFile(file.lora, {**beside, **file.full}, file.config)


def fold_live(model: nn.Module) -> None:
    """Merge every live adapter into the weights (fp32 add, one cast) and take it off."""
    names = sorted({name for layer in adapters.lora_layers(model).values() for name in layer.lora_A})
    for name in names:
        file = adapters.read_live(model, name=name)
        adapters.remove(model, name=name)
        adapters.merge(model, file)
