"""Short plans for every method in mcit/methods, made from what it claims: what contract tests train."""

from mcit.core import lookup
from mcit.core.config import load_yaml
from mcit.core.paths import shipped
from mcit.methods.base import Method
from mcit.methods.check import has_to_forget
from tests.fakes.bench import plan_of

NAMES = lookup.known("methods")
FULL = {"kind": "none", "also_train": ["projector"]}
KEEP = {"rank": 4, "alpha": 8, "also_train": ["projector"], "carry": "keep"}
POOL = {"rank": 4, "alpha": 8, "also_train": [], "carry": "pool"}
MOE = {**KEEP, "kind": "moe_lora", "experts": 2}
ROUTER = {"use": "self_refined", "rows": 6, "samples": 8, "align_epochs": 2}
"""Of a pool, with little to learn."""
VARIANTS = {
    "passes outside steps": ("tests.fakes.small:RowFisher", {}, KEEP),
    "passes of a step": ("tests.fakes.small:TwoPass", {}, KEEP),
    "inner fine-tuning": ("tests.fakes.small:Tuner", {}, KEEP),
    "early end": ("tests.fakes.small:Ender", {}, KEEP),
    "refresh, no F": ("refresh", {"damping": 0.0, "delta": 1e-3, "every": 2}, None),
    "hft, full tuning": ("hft", {}, FULL),
    "hft, rows": ("hft", {"selection": "row"}, FULL),
    "group_sparse, proximal": ("group_sparse", {"treatment": "proximal", "alpha": 60.0}, None),
    "refusal, blind": ("refusal", {"say": "blind"}, None),
    "refusal, joint mean": ("refusal", {"mean": "joint"}, None),
    "gradient restriction": ("gradient_penalty", {"loss": "task", "norm": "tensors", "rho": 0.005}, None),
    "iau, formula": ("iau", {"step": "formula", "lr": 0.01}, None),
    "prototypes, held": ("prototypes", {"retain": 0.1, "bound": 0.5, "by": "task"}, None),
    "ewc, parameters": (
        "ewc",
        {"space": "parameters", "merge": "separate", "estimator": "batches"},
        {"rank": 4, "alpha": 8, "also_train": ["projector"], "carry": "keep"},
    ),
    "lcia, released rule": ("lcia", {"role": "new", "quotient": False, "factor": 2.0, "fallback": 0.01}, None),
    "l2, mixture of experts": ("l2", {}, MOE),
    "mos, as released": ("mos", {"authors_compat": True}, None),
    "gere, dynamic weight": ("gere", {"weight": "dynamic", "combine": "halves"}, None),
    "gere, features": ("gere", {"variant": "l2", "weight": 1.0}, None),
    "gere, logits, natural mixing": ("gere", {"variant": "kl", "weight": 1.0, "mix": "natural"}, None),
}
"""Settings that take other paths than the shipped ones: method, settings, adapter."""


SMALL = {
    "agem": {"per_step": 1},  # the mean of more rows of the memory never goes against these tasks
    "ema": {
        "decay": 0.5
    },  # after four steps at 0.99 the average is the start but for 4 %: its change would be mostly rounding
    "ga": {"ceiling": "none", "retain_rise": 100.0},  # an untrained model knows nothing, where ascent stops at once
    "optimistic_forget": {
        "bound": 20.0,
        "requeue": 1.0,
    },  # never there, so that the second stage goes on with the first's
    "optimistic_replay": {"threshold": 20.0, "patience": 1},  # every row is satisfied at once
    "undial": {"alpha": 1.0},  # alone its first gradients are small differences of large ones
    "ssd": {"alpha": 1.2},  # no weight matters ten times as much for half of the rows
}
"""Settings of benches by method."""
NEUTRAL = {
    "agem": {"per_step": 0},
    "ema": {"decay": 0.0},
    "fpf": {"steps": 0},
    "lcia": {"factor": 1e-30, "fallback": 0.0},  # the old average has no share, by the rule and where it gives none
    "refresh": {"delta": 0.0},
}
"""Settings that change nothing, of methods without a weight; that of `mos`, which needs a router, is in its own tests."""
AROUND = frozenset({"sam", "random_smoothing", "gradient_penalty", "curvature", "retain_kl", "optimistic_forget"})
"""Methods that go around a forget objective, or have no gradient without one: tried around npo."""
OUTSIDE = [f"mcit_sample.{name}" for name in ("two_views:TwoViews", "hardest:Hardest", "quiet_layer:QuietLayer")]
"""Methods of the sample package in tests/fakes/outside."""


def cls_of(name):
    return lookup.class_of("methods", name, base=Method)


def claims_of(name):
    """Of the method with its shipped settings."""
    cls = cls_of(name)
    return cls(cls.Config(**shipped_settings(name))).claims


def shipped_settings(name):
    """None for a class from elsewhere."""
    if ":" in name:
        return {}
    return {k: v for k, v in load_yaml(shipped("configs") / "methods" / f"{name}.yaml").items() if k != "name"}


def stage_settings(name):
    """Adapter settings that meet the method's needs."""
    needs = claims_of(name).needs
    adapter = {"rank": 4, "alpha": 8, "also_train": ["projector"]}
    if "adapter:none" in needs or name == "ssd":  # which dampens whole weights where it forgets
        adapter = {"kind": "none", "also_train": ["projector"]}
    if "names:kept" in needs:
        adapter["carry"] = "keep"
    if "carry:stack" in needs:
        adapter["carry"] = "stack"
    if "carry:pool" in needs:
        adapter = POOL
    return adapter


def kept_settings(name):
    """The same with an adapter that the next stage trains on, where the method allows it: none that forgets does."""
    adapter, needs = stage_settings(name), claims_of(name).needs
    fixed = adapter.get("kind") == "none" or any(need.startswith("carry:") for need in needs) or forgets(name)
    return adapter if fixed else {**adapter, "carry": "keep"}


def bench_settings(name):
    """The shipped settings; a method with pools of its own (``recipe``, or ``visits`` of recipes) reads small ones."""
    fields = cls_of(name).Config.model_fields
    small = {"recipe": "general/tiny"} if "recipe" in fields and name != "canary" else {}
    small |= {"visits": {"tiny/word": 3}} if "visits" in fields else {}
    for setting, few in (("rows", 16), ("steps", 3)):  # rows of a pass, steps of an inner fine-tuning
        small |= {setting: few} if setting in fields and fields[setting].annotation is int else {}
    return {**shipped_settings(name), **small, **SMALL.get(name, {})}


def plan_with(*names, changes=None, adapter=None, optim=None, **top):
    """Two stages with these methods; `changes` by method, `adapter` in place of what the first one needs."""
    methods = [{"name": n, **bench_settings(n), **(changes or {}).get(n, {})} for n in names]
    methods += [{"name": n, **bench_settings(n)} for n in companions(methods)]
    adapter = adapter or (stage_settings(names[0]) if names else None)
    top = {"router": ROUTER, **top} if adapter == POOL else top
    views = [method["views"] for method in methods if "views" in method]  # every view takes an epoch
    given = {"methods": methods, "adapter": adapter, "optim": optim, "epochs": max(views, default=None)}
    return plan_of(**data_of(*names), **top, defaults={key: value for key, value in given.items() if value is not None})


def companions(methods):
    """A method that opens the stream of rows to forget, where one of these only reads it."""
    made = [cls_of(m["name"]) for m in methods]
    settings = [{k: v for k, v in m.items() if k != "name"} for m in methods]
    claims = [cls(cls.Config(**given)).claims for cls, given in zip(made, settings, strict=True)]
    needed = any("stream:forget" in c.needs or "decouple" in c.streams for c in claims)
    needed = needed and not any("forget" in c.streams for c in claims)
    around = ["npo"] if AROUND & {m["name"] for m in methods} else []
    return around or (["bounded_forget"] if needed else [])


def forgets(name):
    """Whether a method reads rows to forget."""
    return has_to_forget(claims_of(name)) or name in AROUND


def data_of(*names):
    """Stages with something to forget where a method needs it."""
    if any(map(forgets, names)):
        forget = {"forget": "tiny/word-forget"}
        forget |= {"decouple": "tiny/word-decouple"} if any("decouple" in claims_of(n).streams for n in names) else {}
        return {"stages": [{"recipe": r, **forget} for r in ("tiny/letter", "tiny/word-retain")]}
    return {}


def named_plan(name, **top):
    """The plan of a method with its shipped settings, or of a variant."""
    method, settings, adapter = VARIANTS.get(name, (name, {}, None))
    return plan_with(method, changes={method: settings}, adapter=adapter, **top)
