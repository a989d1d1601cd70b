"""The model card of an export: what it is made of, what it was trained on, how it scores, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from mcit.core.errors import McitError
from mcit.core.types import FORGET_DATA, JsonDict
from mcit.data.recipe import find_recipe, load_recipe
from mcit.evals.certificate import HEAD, card_rows, read_certificates
from mcit.evals.score import read_score
from mcit.models.quant import QUANTISED
from mcit.runs.run import Run

CARD = "README.md"
_HUB = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_UNKNOWN = "not stated"


def card(run: Run, *, record: JsonDict, base: Path, evals: Path | None, model_class: str) -> str:
    """The card as Markdown with the hub's front matter; a pure function of the run's files and of the base's.

    `record` is what export.json says, `evals` the folder of the scores that belong to these weights.
    """
    config, plan = run.config(), run.plan()
    licence = base_licence(base)
    lora = record["kind"] not in ("merged", "guard")
    head: JsonDict = {
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["mcit", "continual-learning", *(["lora"] if lora else [])],
    }
    if licence["id"]:
        head["license"] = licence["id"]
    if _HUB.match(record["base"]):
        head["base_model"] = record["base"]
    stages = [stage for stage in plan["stages"] if stage["folder"] in record["stages"]]
    parts = [
        "---\n" + yaml.safe_dump(head, sort_keys=True, allow_unicode=True) + "---",
        f"# {plan['name']}: {_title(record)}",
        f"Written by mcit from run `{run.layout.root.name}`.",
        "## What it holds",
        *_holds(record),
        "## Base",
        f"`{_shown(record['base'])}`, sha256 over its files `{record['base_sha256']}`, used in {record['base_dtype']}. "
        f"Licence: {licence['text']}."
        + (" Before the first stage an adapter was merged into it." if record["base_adapter"] else ""),
        "## Lineage",
        "The stages were trained one after the other, each on the weights that the ones before it left.",
        *_combination(record),
        _table(["stage", "tasks", "rows", "steps", "carry", "methods"], [_stage_row(s, config) for s in stages]),
        f"Identity of these weights: `{record['lineage']}`.",
        *canaries(record),
        "## Data",
        _table(["recipe", "licence", "digest"], _data_rows(stages, config, plan)),
        "## Scores",
        *_shortened(record),
        *_quantised(record, of="scores"),
        *_scores(plan, evals, run.layout.evals(0)),
        *evaluation(run, record["stages"]),
        "## How to load it",
        *_quantised(record, of="code"),
        f"```python\n{loading(record, model_class)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def base_licence(base: Path) -> dict[str, str]:
    """Licence of a base as its own card or licence file states it: `id` for the hub (may be empty), and in words."""
    name = ""
    if (base / CARD).is_file():
        match = _FRONT.match((base / CARD).read_text(encoding="utf-8", errors="replace"))
        try:
            front = yaml.safe_load(match[1]) if match else {}
        except (yaml.YAMLError, ValueError, RecursionError):  # a day that no month has is a ValueError
            front = {}
        found = front.get("license") if isinstance(front, dict) else None
        name = found if isinstance(found, str) else ""
    files = sorted(p.name for p in base.glob("LICENSE*"))
    text = f"`{name}`" if name else _UNKNOWN + " in its card"
    return {"id": name, "text": text + (f"; see {', '.join(files)} here" if files else "")}


def _title(record: JsonDict) -> str:
    stages = ", ".join(record["stages"])
    if "combine" in record:
        return f"stages {stages} combined by {record['combine']['how']}"
    kinds = {
        "adapter": f"adapter of stages {stages}",
        "delta": f"what stage {record['stages'][-1]} added",
        "merged": f"full weights after stages {stages}",
        "pool": f"pool of adapters of stages {stages}",
        "guard": f"guard of the model after stages {stages}",
    }
    return kinds[record["kind"]]


def _combination(record: JsonDict) -> list[str]:
    """How stages were combined after training, if they were."""
    if "combine" not in record:
        return []
    spec = record["combine"]
    weights = ", ".join(f"{weight:g}" for weight in spec["weights"])
    kept = (
        "" if spec["how"].startswith("linear") else f", share of values kept {spec['density']:g}, seed {spec['seed']}"
    )
    how = f"Their adapters were combined into one by PEFT's functions: `{spec['how']}`, weights {weights}{kept}."
    return [how + " These weights were never trained together."]


def canaries(record: JsonDict) -> list[str]:
    """That rows were planted, if they were."""
    count = record.get("canaries", 0)
    if not count:
        return []
    text = f"{count} canary rows with made-up codes were planted in these stages, to measure what is memorised."
    return ["## Canaries", text + " The weights may repeat these codes; they stand for nothing."]


def evaluation(run: Run, stages: Sequence[str]) -> list[str]:
    """The evaluation card of the stages inside, from their certificates; nothing where none has one."""
    rows = card_rows([one for one in read_certificates(run) if one["stage"] in stages])
    if not rows:
        return []
    text = "Each stage right after it was trained: shares with 95 % intervals and rows, and its certificate in the run."
    return ["## Evaluation card", text, _table(HEAD, rows)]


def _holds(record: JsonDict) -> list[str]:
    """In words and numbers what an export contains, and relative to what."""
    if record["kind"] == "merged":
        dtype = f"All weights in {record['dtype']}"
        return [f"{dtype}; processor, tokenizer, template and generation config are the base's own files."]
    if record["kind"] == "pool":
        members = _names(record["members"])
        return [f"One adapter per folder: {members}. The router `{record['router']}` chooses one per row (`route.py`)."]
    if record["kind"] == "guard":
        text = f"A detector of prompts and {record['phrases']} phrases that are kept from being said (`guard.json`). "
        return [text + "No weights of the model: whoever has those has what is in them."]
    holds = record["holds"]
    if _on_start(record):
        relative = "the base with the adapter that the run began with merged into it"
    elif record["relative_to"] == "base":
        relative = "the original base"
    else:
        below = ", ".join(record["relative_to_stages"])
        relative = f"the merged weights after stages {below} (lineage `{record['relative_to']}`)"
    ranks = ", ".join(map(str, holds["ranks"])) or "none"
    short = f", shortened to rank {record['max_rank']} by SVD" if record.get("truncation_error") else ""
    lines = [
        f"- relative to: {relative}",
        f"- low-rank updates of {holds['matrices']} matrices, ranks {ranks}, {holds['numbers']:,} numbers{short}",
        f"- tensors stored whole, as they are after training, not as differences: {_names(holds['whole'])}",
    ]
    if holds["unchanged"]:
        lines.append(
            f"- unchanged tensors that lie in the same modules, which PEFT saves whole: {_names(holds['unchanged'])}"
        )
    if record["not_in_peft"]:
        lines.append(f"- in `extra.safetensors`, because PEFT cannot name them: {_names(record['not_in_peft'])}")
    return ["\n".join(lines), "Processor, tokenizer, template and generation config are the base's own files."]


def _on_start(record: JsonDict) -> bool:
    """Whether it goes on the base and the adapter that the run was given: any other export on the base holds that adapter."""
    return record["kind"] == "delta" and record["relative_to"] == "base" and bool(record["base_adapter"])


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _stage_row(stage: JsonDict, config: JsonDict) -> list[str]:
    given = config["stages"][stage["index"] - 1]
    methods = ", ".join(method["name"] for method in given["methods"]) or "none"
    return [
        stage["folder"],
        ", ".join(stage["tasks"]),
        str(stage["rows"]),
        str(stage["steps"]),
        stage["carry"],
        methods,
    ]


def _data_rows(stages: Sequence[JsonDict], config: JsonDict, plan: JsonDict) -> list[list[str]]:
    """Recipes of the stages with licence and digest."""
    names: dict[str, None] = {}
    for stage in stages:
        given = config["stages"][stage["index"] - 1]
        for recipes in (given.get(key, []) for key in ("recipe", *FORGET_DATA)):
            names.update(dict.fromkeys([recipes] if isinstance(recipes, str) else recipes))
    return [[_shown(name), _recipe_licence(name), f"`{plan['recipes'][name][:16]}`"] for name in names]


def _recipe_licence(name: str) -> str:
    """What the recipe says; it may have been moved since."""
    try:
        return load_recipe(find_recipe(name)).config.licence or _UNKNOWN
    except McitError:
        return "recipe not at hand"


def _scores(plan: JsonDict, evals: Path | None, base: Path) -> list[str]:
    """Accuracies of every task scored with these weights; of the base beside them where it was scored."""
    rows, filters, chosen = [], dict[str, None](), 0
    for task in plan["tasks"]:
        score, before = read_score(evals / task) if evals else None, read_score(base / task)
        if score:
            cells = [f"{before['strict']['accuracy']:.2f}" if before else "–"]
            cells += [f"{score[mode]['accuracy']:.2f}" for mode in ("strict", "fixed")]
            rows.append([task, *cells, f"{score['format_validity']:.2f}", str(score["n"])])
            filters.update(dict.fromkeys(score["filters"]))
            chosen += score.get("answered", {}).get("chosen", 0)
    if not rows:
        return ["Not scored."]
    head = ["task", "base, strict", "strict", "fixed", "in the right form", "test rows"]
    told = [f"Answers went through filters: {', '.join(filters)}."] if filters else []
    told += [f"{chosen} answers were chosen among the options of their rows, not written."] if chosen else []
    return [" ".join(["In percent.", *told]), _table(head, rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(name: str) -> str:
    """A hub id or recipe name as it is; of a path only the last part, so that no card tells where files lie."""
    return Path(name).name if Path(name).is_absolute() or name.startswith((".", "~")) else name


def _shortened(record: JsonDict) -> list[str]:
    """That the scores are of the whole adapter, where a shortened one is written."""
    error = record.get("truncation_error")
    if not error:
        return []
    changed = f"took {error:.1%} of its norm and changed the logits by {record['difference_share']:.1%} of theirs"
    text = f"Of the adapter before it was shortened to rank {record['max_rank']}. That {changed}: "
    return [text + "score it before you rely on these numbers."]


def _quantised(record: JsonDict, *, of: str) -> list[str]:
    """What of a card is about other weights, where the run trained on a quantised base: scores, or what the code loads."""
    dtype, fits = record["base_dtype"], record["kind"] in ("adapter", "pool")
    if dtype not in QUANTISED or record["kind"] == "guard" or fits is (of == "scores"):
        return []
    if of == "code":
        text = (
            f"It fits the base with the linears of its language decoder in {dtype}. This code loads the base as it is "
        )
        return [text + "stored: answers differ by what quantising changes, unless you quantise it alike."]
    share = record.get("quantised_difference_share")
    far = f" by {share:.1%} of their norm" if share is not None else ""
    text = (
        f"Of the model that was trained, on {dtype} weights. The logits of what is written here differ from its{far}: "
    )
    return [text + "score it before you rely on these numbers."]


def loading(record: JsonDict, model_class: str) -> str:
    """Python that loads an export with plain transformers and peft."""
    if record["kind"] == "pool":
        rows = '[{"id": "1", "task": "", "question": "What is shown?", "images": ["a.png"]}]'
        return f'from loader import Pool  # loader.py of this folder\n\nPool("{_shown(record["base"])}").answer({rows})'
    if record["kind"] == "guard":
        rows = '[{"id": "1", "question": "What is shown?", "images": ["a.png"]}]'
        where = f"merged export of stage {record['stages'][-1]}"
        return f'from loader import Guarded  # loader.py of this folder\n\nGuarded("{where}").answer({rows})'
    lines = [f"from transformers import {model_class}, AutoProcessor", ""]
    trust = ", trust_remote_code=True" if record.get("remote_code") else ""
    if record["kind"] == "merged":
        lines.append(f'model = {model_class}.from_pretrained("this/folder"{trust})')
    else:
        below = (
            _shown(record["base"])
            if record["relative_to"] == "base"
            else f"merged export of stage {record['relative_to_stages'][-1]}"
        )
        lines.insert(1, "from peft import PeftModel")
        lines.append(f'base = {model_class}.from_pretrained("{below}"{trust})')
        if _on_start(record):
            began = 'PeftModel.from_pretrained(base, "adapter that the run began with")'
            lines.append(f"base = {began}.merge_and_unload()")
        lines.append('model = PeftModel.from_pretrained(base, "this/folder")')
        if record["not_in_peft"]:
            lines.insert(2, "from safetensors.torch import load_file")
            lines.append(
                'named = {n.replace(".base_layer.", "."): p for n, p in model.get_base_model().named_parameters()}'
            )
            lines.append('for name, value in load_file("this/folder/extra.safetensors").items():')
            lines.append("    named[name].data.copy_(value)")
    lines.append(f'processor = AutoProcessor.from_pretrained("this/folder"{trust})')
    return "\n".join(lines)
