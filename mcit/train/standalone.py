"""Any model without a run: its scores on the test rows of recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mcit.core.config import Config, apply_overrides, parse
from mcit.core.errors import ConfigError, DataError
from mcit.core.files import sha256_tree
from mcit.core.interfaces import Reporter
from mcit.core.schema import BaseConfig, EvalConfig, RunConfig
from mcit.core.types import JsonDict, Plan, Progress, TaskSpec
from mcit.data.encode import Encoder
from mcit.evals.evaluate import evaluate, needs_model
from mcit.evals.options import chooses, none_chooses
from mcit.evals.score import read_score
from mcit.models.basefiles import base_digest
from mcit.models.load import materialize
from mcit.models.quant import runs_bf16
from mcit.plan.datasets import build_tasks, data_notes
from mcit.plan.preflight import make_encoder
from mcit.train.basemodel import load_run_base


class ModelConfig(Config):
    """A model by itself, and how it is scored."""

    base: BaseConfig
    """The model; see ``base`` of a run config."""
    eval: EvalConfig = EvalConfig()
    """How it is scored; see ``eval`` of a run config."""


def model_config(model: str, settings: Sequence[str]) -> ModelConfig:
    """A folder in HF layout, or the family of a model that builds itself, with settings as for ``--set``.

    Raises ConfigError for what is no model or no setting.
    """
    folder = Path(model)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        fix = "give the folder of its base, and the adapter with --set base.adapter=FOLDER"
        raise ConfigError("holds an adapter, not a model", where=f"--model {model}", fix=fix)
    given = {"family": "hf", "model": model} if folder.is_dir() or "/" in model else {"family": model}
    config, problems = parse(ModelConfig, apply_overrides({"base": given}, list(settings)))
    if config is None:
        raise ConfigError.of(problems)
    return config


class Standalone:
    """A model that is loaded when it is first needed."""

    def __init__(self, config: ModelConfig, *, recipes: Sequence[str] = (), reporter: Reporter) -> None:
        """Raises ConfigError and DataError with every problem of model and recipes, before weights load."""
        stages = [{"recipe": recipe} for recipe in recipes] or [{"recipe": "none"}]
        run = RunConfig.model_validate({"name": "model", "stages": stages})
        run = run.model_copy(update={"base": config.base, "eval": config.eval})
        path = materialize(config.base, announce=reporter.line)
        tasks: tuple[TaskSpec, ...] = ()
        if recipes:
            data, problems = build_tasks(run, announce=reporter.line)
            if problems:
                raise DataError.of(problems)
            tasks = tuple({task.name: task for stage in data for task in stage.tasks}.values())
            for note in data_notes(tasks):
                reporter.line(f"note: {note}")
        self.plan = Plan(run, (), tasks, path, "")
        self._reporter = reporter
        self._model: PreTrainedModel | None = None
        self._encoder: Encoder | None = None

    @property
    def device(self) -> torch.device:
        """A GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def encoder(self) -> Encoder:
        """Rows to tensors, by the model's own processor."""
        if self._encoder is None:
            self._encoder = make_encoder(self.plan)
        return self._encoder

    @property
    def model(self) -> PreTrainedModel:
        """The weights."""
        if self._model is None:
            self._reporter.line(f"loading {self.plan.model_path.name} ({self.plan.config.base.dtype})")
            self._model = load_run_base(self.plan, device=self.device)
        return self._model

    @property
    def digest(self) -> str:
        """Checksum of the files that make the model."""
        adapter = self.plan.config.base.adapter
        return base_digest(self.plan.model_path) + (sha256_tree(adapter) if adapter else "")

    def score(self, out: Path, *, stop: Callable[[], bool]) -> list[JsonDict]:
        """Answer and score the test rows of every task into ``out/<task>``; what is there of this model is kept.

        Raises Interrupted after the batch in which `stop` says so, ConfigError for settings that do not go together.
        """
        given: dict[str, Any] = {"folder": out, "config": self.plan.config.eval, "lineage": self.digest}
        for task in self.plan.tasks:
            if not task.rows.get("test"):
                raise DataError("has no test rows", where=task.recipe, fix="add a test split to the recipe")
        config = self.plan.config.eval
        if config.options == "forward" and not any(chooses(task, rows=config.rows) for task in self.plan.tasks):
            raise ConfigError.of([none_chooses(self.plan.tasks)])
        wanted = needs_model(self.plan.tasks, **given)
        with self._precision():
            evaluate(
                self.plan.tasks,
                **given,
                model=self.model if wanted else None,
                encoder=self.encoder if wanted else None,
                device=self.device,
                reporter=self._reporter,
                progress=Progress(0, 0, "", "eval", 0, 0),
                stop=stop,
            )
        return [score for task in self.plan.tasks if (score := read_score(out / task.name)) is not None]

    def _precision(self) -> torch.autocast:
        bf16 = runs_bf16(self.plan.config.base.dtype, self.device)
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)
