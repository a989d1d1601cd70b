"""Batches, outputs and contexts for methods that forget, and short runs with rows to forget."""

import dataclasses
from types import SimpleNamespace

import torch

from mcit.core.types import Counts, ModelOutput
from tests.fakes import steps
from tests.fakes.bench import plan_of, run_plan

STAGES = [{"recipe": r, "forget": "tiny/word-forget"} for r in ("tiny/letter", "tiny/word-retain")]


def stage(*, rows=480, batch=48, steps=100, index=2):
    optim, adapter = (
        SimpleNamespace(batch=batch, weight_decay=0.0),
        SimpleNamespace(also_train=[], kind="lora", carry="merge"),
    )
    return SimpleNamespace(index=index, name="s", rows=rows, steps=steps, optim=optim, adapter=adapter)


def step_context(*, rows=2, tokens=3, step=0, **stage_settings):
    made = steps.context()
    made.stage, made.step, made.lr = stage(**stage_settings), step, 0.1
    made.counts = Counts({"forget": tokens}, {"forget": rows})
    return made


def output(*nll_by_row, vocabulary=8):
    """Token losses of each row, with logits of a size."""
    nll = torch.tensor([v for row in nll_by_row for v in row], requires_grad=True)
    row = torch.tensor([i for i, values in enumerate(nll_by_row) for _ in values])
    return ModelOutput(torch.zeros(len(nll), vocabulary), torch.zeros_like(row), row, nll)


def batch_of(count, stream="forget"):
    one = steps.batch(stream)
    rows = tuple(dataclasses.replace(one.rows[0], id=str(i)) for i in range(count))
    return dataclasses.replace(one, rows=rows)


def seen(stream, *embeddings, answers):
    """A batch of rows with one predicting position each, and hidden states there."""
    count = len(embeddings)
    made = batch_of(count, stream)
    rows = tuple(
        dataclasses.replace(r, turns=(r.turns[0], dataclasses.replace(r.turns[1], text=a)))
        for r, a in zip(made.rows, answers, strict=True)
    )
    labels = torch.tensor([[-100, 7]] * count)
    hidden = torch.stack([torch.tensor([e, [99.0] * len(e)]) for e in embeddings])
    out = dataclasses.replace(output(*[[1.0]] * count), hidden={"last": hidden})
    return dataclasses.replace(made, rows=rows, labels_BT=labels), out


def answered(stream, *answers):
    """Rows with these supervised tokens."""
    out = output(*[[1.0] * len(answer) for answer in answers])
    return batch_of(len(answers), stream), dataclasses.replace(out, targets_N=torch.tensor(sum(answers, [])))


def started(given, forget, task):
    """The method after its start hook, on batches of the rows to forget and of the retained rows."""
    ctx = step_context()
    ctx.forward_pass = lambda source, **kw: iter([forget if source == "forget" else task])
    given.on_stage_start(ctx)
    return given


def trained(tmp_path, *methods, engine=None, stop_at=None, **changes):
    plan = plan_of(stages=changes.pop("stages", STAGES), defaults={"methods": list(methods), **changes})
    return plan, run_plan(plan, tmp_path, engine=engine, stop_at=stop_at)
