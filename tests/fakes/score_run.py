"""Run folders of score files, made without a model; fixtures for the conftest files that want them."""

import pytest

from mcit.core.files import write_json, write_text
from mcit.core.stored import write_manifest
from mcit.evals.predictions import write_predictions
from mcit.evals.score import score_predictions, write_score
from tests.fakes.run_dir import create, plan_record


class FakeRun:
    """A run of one task per stage (or `tasks` per stage) with given answers."""

    def __init__(self, root, stages, *, mode="strict", style="name", slices=(), config=None, env=None, plan=None):
        """`slices` is what plan.json says of each stage's; None is nothing.

        `config` and `plan` are added to the resolved config and the plan, `env` is the environment.
        """
        self.root, self.style = root, style
        self.plan = {**plan_record(stages, style=style, mode=mode), **(plan or {})}
        for stage, own in zip(self.plan["stages"], slices, strict=False):
            stage.update({"slices": own} if own else {})
        create(root, self.plan, config=config, env=env)

    def score(self, after, task, answers, gold=None):
        """Answers of a task after a stage (0: base); gold is "cat" in every row if not given."""
        gold = gold or ["cat"] * len(answers)
        rows = [
            {
                "id": f"{task}-{i}",
                "index": i,
                "text": text,
                "tokens": 2,
                "truncated": False,
                "question": "what?",
                "gold": {"answer": right, "style": ""},
            }
            for i, (text, right) in enumerate(zip(answers, gold, strict=True))
        ]
        folder = self.root / "evals" / (f"after-{after:02d}" if after else "base") / task
        write_predictions(folder, rows, {"filters": [], "lineage": "L"})
        extra = {"task": task, "filters": [], "lineage": "L", "settings": "S"}
        write_score(folder, score_predictions(rows, scorer="exact", style=self.style, extra=extra))
        return self

    def shares(self, after, task, right, n=10):
        """So many right answers of ten; the others are a wrong name."""
        return self.score(after, task, ["cat"] * right + ["dog"] * (n - right))

    def progress(self, folder, **content):
        known = {"steps": 1, "tokens": 2, "seconds": 3.0, "loss": None}
        return self.stage_file(folder, "progress.json", {**known, **content})

    def stage_file(self, folder, name, content):
        """A file of a committed stage."""
        stage = self.root / "stages" / folder
        write_json(stage / name, content)
        write_text(stage / "metrics.jsonl", '{"loss": 1.0, "step": 1}\n')
        write_manifest(stage)
        return self


@pytest.fixture
def fake_run(tmp_path):
    def make(stages, name="run", **kwargs):
        return FakeRun(tmp_path / name, stages, **kwargs)

    return make


@pytest.fixture
def three(fake_run):
    """Oracle T2 as counts of ten: rows [50], [70, 40], [60, 45 -> 50, 30]."""
    run = fake_run([["a"], ["b"], ["c"]])
    run.shares(1, "a", 5)
    run.shares(2, "a", 7).shares(2, "b", 4)
    run.shares(3, "a", 6).shares(3, "b", 5).shares(3, "c", 3)
    return run
