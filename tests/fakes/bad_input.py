"""What a user can get wrong, one case each: how to make it, the command, and the exit code it must have.

What each case says (where, what, fix) stands in docs/reliability.md, which tests/cli/test_bad_input.py compares.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.memory import Bag
from tests.fakes.models import tiny_path
from tests.fakes.recipes import recipe_file, rows
from tests.fakes.rows import llava, picture

Make = Callable[[Path], list[str]]
"""Prepares files below a folder and returns the command."""


@dataclass(frozen=True)
class Case:
    """One wrong input."""

    name: str
    make: Make
    code: int
    env: dict[str, str] = field(default_factory=dict)
    says: str = ""
    """For what is not refused (exit 0): text that must be shown."""


CASES: list[Case] = []


def case(name: str, make: Make, code: int, **settings: Any) -> None:
    """Add one."""
    CASES.append(Case(name, make, code, **settings))


# ---- values of a config ----------------------------------------------------------------------------------------------
def changed(name: str, *settings: str, config: str = "tiny", code: int = 2) -> None:
    """A shipped config with other values."""
    case(name, lambda _: ["plan", config, *(part for s in settings for part in ("--set", s))], code)


for name, setting in {
    "learning rate below 0": "defaults.optim.lr=-1",
    "learning rate that is no number": "defaults.optim.lr=fast",
    "learning rate NaN": "defaults.optim.lr=.nan",
    "learning rate infinite": "defaults.optim.lr=.inf",
    "decay of moments beyond 1": "defaults.optim.betas=[0.9,1.5]",
    "one decay of moments": "defaults.optim.betas=[0.9]",
    "a thousand million threads": "engine.workers=1000000000",
    "projector's learning rate below 0": "defaults.optim.lr_projector=-0.1",
    "rank 0": "defaults.adapter.rank=0",
    "rank below 0": "defaults.adapter.rank=-4",
    "rank with a fraction": "defaults.adapter.rank=8.5",
    "alpha 0": "defaults.adapter.alpha=0",
    "dropout 1": "defaults.adapter.dropout=1",
    "dropout below 0": "defaults.adapter.dropout=-0.1",
    "adapter of an unknown kind": "defaults.adapter.kind=dora",
    "carry misspelt": "defaults.adapter.carry=mrge",
    "group of weights misspelt": "defaults.adapter.also_train=[projctor]",
    "carry without an adapter": "defaults.adapter={kind: none, carry: merge}",
    "more experts than ranks": "defaults.adapter={kind: moe_lora, rank: 4, experts: 8}",
    "experts that do not share the rank evenly": "defaults.adapter={kind: moe_lora, rank: 6, experts: 4}",
    "mixture of experts merged": "defaults.adapter={kind: moe_lora, carry: merge}",
    "adapter's preset misspelt": "defaults.adapter={use: mole_lora}",
    "adapter kept apart without a router": "defaults.adapter={carry: pool, also_train: []}",
    "router without a pool": "router={use: self_refined}",
    "batch 0": "defaults.optim.batch=0",
    "one beta": "defaults.optim.betas=[0.9]",
    "betas as text": "defaults.optim.betas=high",
    "eps 0": "defaults.optim.eps=0",
    "moments misspelt": "defaults.optim.moments=kept",
    "moments kept of adapters that are merged": "defaults.optim.moments=keep",
    "schedule misspelt": "defaults.optim.schedule=cosin",
    "warm-up below 0": "defaults.optim.warmup=-1",
    "last learning rate above 1": "defaults.optim.min_lr_share=2",
    "clip 0": "defaults.optim.clip=0",
    "optimiser unknown": "defaults.optim.kind=adam",
    "epochs below 0": "defaults.epochs=-1",
    "steps 0": "defaults.max_steps=0",
    "dtype unknown": "base.dtype=fp8",
    "family misspelt": "base.family=tinny",
    "attention unknown": "base.attention=flash",
    "family hf without a model": "base.family=hf",
    "adapter's folder missing": "base.adapter=nowhere",
    "chat template's file missing": "base.chat_template=nowhere.jinja",
    "engine unknown": "engine.kind=zero4",
    "device unknown": "engine.device=gpu",
    "offload unknown": "engine.offload=cpu",
    "time-out 0": "engine.timeout=0",
    "micro-batch 0": "engine.micro_batch=0",
    "vision cache of no size": "engine.vision_cache=4 pictures",
    "vision cache of nothing": "engine.vision_cache=0G",
    "workers below 0": "engine.workers=-1",
    "eval.tasks misspelt": "eval.tasks=sen",
    "eval.tasks a number": "eval.tasks=5",
    "scored rows 0": "eval.rows=0",
    "batch of answers 0": "eval.batch=0",
    "scorer mode unknown": "eval.mode=loose",
    "answers of 0 tokens": "eval.max_new_tokens=0",
    "validation every -1 steps": "eval.validate_every=-1",
    "filter unknown": "eval.filters=[nope]",
    "options misspelt": "eval.options=foward",
    "checkpoints every -1 steps": "checkpoint.every=-1",
    "no checkpoint kept": "checkpoint.keep=0",
    "seed as text": "seed=one",
    "seed with a fraction": "seed=1.5",
    "name with a slash": "name=a/b",
    "name that leaves the folder": "name=../x",
    "name of 300 characters": f"name={'n' * 300}",
    "name that ends in a line break": 'name="tiny\\n"',
    "empty name": "name=''",
    "no name": "name=null",
    "unknown section": "sede=1",
    "unknown key of an adapter": "defaults.adapter.rnk=8",
    "unknown key of a stage": "defaults.epoch=1",
    "no stages": "stages=[]",
    "stages as text": "stages=three",
    "recipe misspelt": "stages.0.recipe=tiny/leter",
    "recipe left out missing": "without=[tiny/nothing]",
    "recipe to forget missing": "stages.0.forget=tiny/nothing",
    "method misspelt": "defaults.methods=[{name: regloar}]",
    "preset misspelt": "defaults.methods=[{use: gerre}]",
    "method without a name": "defaults.methods=[{weight: 1}]",
    "method's value out of range": "defaults.methods=[{name: reglora, weight: -1}]",
    "method's key misspelt": "defaults.methods=[{name: reglora, wieght: 1}]",
    "methods as text": "defaults.methods=reglora",
    "setting without =": "seed",
    "setting through a single value": "seed.x=1",
    "setting of a stage that is not there": "stages.9.recipe=tiny/word",
    "setting that is no YAML": "seed=[",
    "setting nested too deeply": f"seed={'[' * 3000}",
}.items():
    changed(name, setting)
changed("forgetting kit without a stage that forgets", "eval.kit={}", code=3)
changed(
    "forgetting kit on a pool of adapters",
    "defaults.adapter={rank: 8, carry: pool, also_train: []}",
    "router={use: oracle}",
    "stages.1.methods=[{use: guard}]",
    "stages.1.epochs=0",
    "eval.kit={membership: []}",
    config="tiny-forget",
    code=3,
)
case("gold run of a config that forgets nothing", lambda _: ["gold", "tiny"], 2)
case("gold run without a recipe that nothing forgets", lambda _: ["gold", "tiny-forget", "--without", "tiny/word"], 2)
changed("options chosen under a filter that guards", "eval.options=forward", "eval.filters=[guard]", code=3)
changed(
    "options chosen where no row has any",
    "eval.options=forward",
    "stages=[{recipe: tiny/word}]",
    code=3,
)
changed("two stages of one name", "stages.0.name=same", "stages.1.name=same")
changed("task that no stage has in eval.tasks", "eval.tasks=[leter]", code=3)
changed(
    "vision cache of a tower that trains",
    "engine.vision_cache=1M",
    "stages.1.adapter.also_train=[tower]",
    code=3,
)
changed("vision cache of a tower in parts", "engine.vision_cache=1M", "engine.kind=zero3", code=3)
changed("targets that match nothing", "defaults.adapter.targets=[nope]", code=3)
for name, settings in {
    "an anchor per stage of adapters that are merged": ["defaults.methods=[{name: ewc, merge: separate}]"],
    "anchors of parameters that the next stage does not keep": ["defaults.methods=[{name: ewc, space: parameters}]"],
    "two methods with passes of their own": ["defaults.methods=[{name: sam}, {name: agem}]"],
    "more views of a row than epochs": ["defaults.methods=[{name: view_batch, views: 4}]"],
    "views of a row that a micro-batch does not hold": [
        "defaults.methods=[{name: view_batch, views: 4}]",
        "defaults.epochs=4",
        "engine.micro_batch=2",
    ],
    "mirrored pictures of a task that is read": [
        "defaults.methods=[{name: view_batch, views: 2, changes: [flip], reading: [word]}]",
        "defaults.epochs=2",
    ],
    "mirrored pictures, for a task that is read alone": [
        "stages.2.methods=[{name: view_batch, views: 2, task_changes: {word: [flip]}, reading: [word]}]",
        "defaults.epochs=2",
    ],
    "changes of pictures for a task of another stage": [
        "stages.2.methods=[{name: view_batch, views: 2, task_changes: {letter: [contrast]}}]",
        "defaults.epochs=2",
    ],
}.items():
    changed(name, *settings, code=3)


# ---- YAML files ------------------------------------------------------------------------------------------------------
def yaml_file(name: str, content: str | bytes, **settings: Any) -> None:
    """A config of this content."""

    def make(root: Path) -> list[str]:
        data = content if isinstance(content, bytes) else content.encode()
        (root / "c.yaml").write_bytes(data)
        return ["plan", str(root / "c.yaml")]

    case(name, make, 2, **settings)


case("config missing", lambda root: ["plan", str(root / "c.yaml")], 2)
case("config misspelt", lambda _: ["plan", "tinny"], 2)
case("config is a folder", lambda root: ["plan", str(root)], 2)
case("config is /dev/zero", lambda _: ["plan", "/dev/zero"], 2)
yaml_file("config is a picture", b"\x89PNG\r\n\x1a\n\0\0")
yaml_file("config in Latin-1", "name: \xe4".encode("latin-1"))
yaml_file("config of 5 MB", "# " + "x" * 5_000_000)
yaml_file("empty config", "")
yaml_file("config that is a list", "- a\n- b\n")
yaml_file("key that is a list", "name: a\n? [a, b]\n: c\n")
yaml_file("key that is a number", "name: a\n1: b\n")
yaml_file("key given twice", "name: a\nseed: 1\nseed: 2\n")
yaml_file("control character", "name: a\x07b\n")
yaml_file("tab as indentation", "base:\n\tfamily: tiny\n")
yaml_file("3000 levels", "name: " + "[" * 3000 + "]" * 3000)
yaml_file("number of 5000 digits", "seed: " + "9" * 5000)
yaml_file("date that is none", "name: 2024-13-45\n")
yaml_file("date as a name", "name: 2024-01-02\n")
yaml_file("bytes as a name", "name: !!binary aGVsbG8=\n")
yaml_file("Python object", "name: !!python/object/apply:os.getcwd []\n")
yaml_file("alias of nothing", "name: *a\n")
yaml_file("alias of itself", "name: &a [*a]\n")
yaml_file(
    "aliases that multiply",
    "a: &a [1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
)
yaml_file("two documents", "name: a\n---\nname: b\n")
yaml_file("bracket left open", "stages: [a, b\n")


# ---- recipes ---------------------------------------------------------------------------------------------------------
def recipe(name: str, code: int = 2, /, **changes: Any) -> None:
    """A recipe of two good rows with other settings."""

    def make(root: Path) -> list[str]:
        path = recipe_file(root / "s", train=rows(4))
        data = {**yaml.safe_load(path.read_text()), **changes}
        path.write_text(yaml.safe_dump(data))
        return ["data", "build", str(path), "--data-dir", str(root / "data")]

    case(name, make, code)


def source(**changes: Any) -> list[dict[str, Any]]:
    """The one source of such a recipe."""
    return [{"kind": "llava", "path": "train.json", "images": "images", **changes}]


case("recipe missing", lambda root: ["data", "check", str(root / "r.yaml")], 2)
case("shipped recipe misspelt", lambda _: ["data", "check", "tiny/leter"], 2)
case("benchmark's folder absent", lambda root: ["data", "check", "coin/gqa"], 4, env={"MCIT_DATA": "nowhere"})
recipe("source of an unknown kind", sources=source(kind="lava"))
recipe("no sources", sources=[])
recipe("sources as text", sources="train.json")
recipe("source by absolute path", sources=source(path="/dev/zero"))
recipe("source above its folder", sources=source(path="../train.json"))
recipe("source missing", 4, sources=source(path="gone.json"))
recipe("source with another checksum", 4, sources=source(sha256="0" * 64))
recipe("checksum that is none", sources=source(sha256="abc"))
recipe("split of a source unknown", sources=source(split="dev"))
recipe("key of a source misspelt", sources=source(pth="x"))
recipe("generator unknown", sources=[{"kind": "generator", "generator": "leter", "rows": 3}])
recipe("generator of 0 rows", sources=[{"kind": "generator", "generator": "letter", "rows": 0}])
recipe("task with a slash", task="a/b")
recipe("task of 300 characters", task="t" * 300)
recipe("recipe's name of 300 characters", name="n" * 300)
recipe("recipe's name that leaves the folder", name="../x")
recipe("recipe's key misspelt", sorces=[])
recipe("transform unknown", transforms=[{"use": "subsampel", "rows": 1}])
recipe("transform without a name", transforms=[{"rows": 1}])
recipe("transform's key misspelt", transforms=[{"use": "subsample", "row": 1}])
recipe("allowed bad rows below 0", allow_bad=-1)
recipe("validation below 0", split={"validation": -1})
recipe("validation of all rows", 4, split={"validation": 4})
recipe("validation by nothing known", split={"validation": 1, "by": "color"})
recipe("validation by a key that rows lack", 4, split={"validation": 1, "by": "meta.gone"})
recipe("answers of 0 tokens in a recipe", eval={"max_new_tokens": 0})
recipe("selection that no row has", 4, transforms=[{"use": "select", "keep": ["maybe"]}])


def odd_source(name: str, place: Callable[[Path], None]) -> None:
    """A recipe whose ``train.json`` is something else."""

    def make(root: Path) -> list[str]:
        path = recipe_file(root / "s", train=rows(2))
        (root / "s" / "train.json").unlink()
        place(root / "s" / "train.json")
        return ["data", "build", str(path), "--data-dir", str(root / "data")]

    case(name, make, 4)


def _outside(path: Path) -> None:
    (path.parent.parent / "outside.json").write_text("[]")
    path.symlink_to(path.parent.parent / "outside.json")


odd_source("source is a link to /dev/zero", lambda path: path.symlink_to("/dev/zero"))
odd_source("source is a link out of its folder", _outside)
odd_source("source is a link to itself", lambda path: path.symlink_to(path))
odd_source("source is a pipe", lambda path: os.mkfifo(path))
odd_source("source is a folder without tables", lambda path: path.mkdir())
odd_source("source is empty", lambda path: path.write_text(""))
odd_source("source is a picture", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe\0\0"))
odd_source("source cut off", lambda path: path.write_text(json.dumps(rows(3))[:-40]))
odd_source("source of 100 MB on one line", lambda path: path.write_bytes(b'{"id": "a", "x": "' + b"x" * 100_000_000))
odd_source("source of 50,000 levels", lambda path: path.write_text("[" * 50_000))


# ---- rows ------------------------------------------------------------------------------------------------------------
def bad_row(name: str, row: Any, **settings: Any) -> None:
    """Two good rows and this one, which may be text as it stands in the file."""

    def make(root: Path) -> list[str]:
        path = recipe_file(root / "s", train=rows(2), **settings)
        text = row if isinstance(row, (str, bytes)) else json.dumps(row)
        data = text if isinstance(text, bytes) else text.encode()
        lines = [json.dumps(r).encode() for r in rows(2)]
        (root / "s" / "train.json").write_bytes(b"[\n" + b",\n".join([*lines, data]) + b"\n]")
        return ["data", "build", str(path), "--data-dir", str(root / "data")]

    case(name, make, 4)


shown = "<image>\nWhat?"
bad_row("picture missing", llava("x", shown, image="gone.png"))
bad_row("picture above its folder", llava("x", shown, image="../out.png"))
bad_row("picture by absolute path", llava("x", shown, image="/etc/hostname"))
bad_row("picture with a null byte", llava("x", shown, image="a\0.png"))
bad_row("picture's name is a number", llava("x", shown, image=7))
bad_row("<image> without a picture", llava("x", shown))
bad_row("two <image> for one picture", llava("x", "<image><image>What?", image="a.png"))
bad_row("id used twice", llava("r0", "Other?"))
bad_row("id is a list", llava(["x"]))  # type: ignore[arg-type]
bad_row("empty answer", llava("x", answer=""))
bad_row("answer of blanks", llava("x", answer=" \n"))
bad_row("answer is a mapping", llava("x", answer={"a": 1}))  # type: ignore[arg-type]
bad_row("turns missing", {"id": "x", "image": "a.png"})
bad_row("turns as text", {"id": "x", "conversations": "hello"})
bad_row("no turns", {"id": "x", "conversations": []})
bad_row("answer before question", {"id": "x", "conversations": llava("x")["conversations"][::-1]})
bad_row("question without an answer", {"id": "x", "conversations": llava("x")["conversations"][:1]})
bad_row("role unknown", {"id": "x", "conversations": [{"from": "cat", "value": "miau"}]})
bad_row("row is a list", ["x"])
bad_row("row is a number", "7")
bad_row("row is null", "null")
bad_row("row of another benchmark", {"id": "x", "prompt": "Q?", "completion": "A"})
bad_row("row of the test split in training", {"question_id": "x", "text": "Q?"})
bad_row("NaN in a row", '{"id": "x", "meta": {"k": NaN}}')
bad_row("infinite number in a row", json.dumps(llava("x", meta={"k": "K"})).replace('"K"', "1e999"))
bad_row("number of 5000 digits in a row", '{"id": "x", "meta": {"k": ' + "9" * 5000 + "}}")
bad_row("2000 levels in a row", '{"id": "x", "meta": ' + "[" * 2000 + "]" * 2000 + "}")
bad_row("half a surrogate pair", json.dumps(llava("x", answer="S")).replace('"S"', '"\\ud800"'))
bad_row("Latin-1 in a UTF-8 file", json.dumps(llava("x", answer="S")).encode().replace(b'"S"', b'"\xe9"'))
bad_row("malformed JSON", '{"id": "x", "conversations": [}')
bad_row("box above 1", llava("x", answer="[0.1, 0.2, 1.3, 0.4]", style="box"))
bad_row("box reversed", llava("x", answer="[0.5, 0.2, 0.1, 0.4]", style="box"))
bad_row("box of three numbers", llava("x", answer="[0.5, 0.2, 0.1]", style="box"))
bad_row("box of pixels", llava("x", answer="[10, 20, 300, 400]", style="box"))


def bad_picture(name: str, place: Callable[[Path], None]) -> None:
    """A row with this picture file."""

    def make(root: Path) -> list[str]:
        path = recipe_file(root / "s", train=[*rows(2), llava("x", shown, image="bad.png")])
        place(root / "s" / "images" / "bad.png")
        return ["data", "build", str(path), "--data-dir", str(root / "data")]

    case(name, make, 4)


def _cut(path: Path) -> None:
    picture(path.parent, path.name, size=(200, 200))
    path.write_bytes(path.read_bytes()[:-60])


def _bomb(path: Path) -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


def _linked(path: Path) -> None:
    picture(path.parent.parent, "outside.png")
    path.symlink_to(path.parent.parent / "outside.png")


bad_picture("picture cut off", _cut)
bad_picture("picture of 0 bytes", lambda path: path.write_bytes(b""))
bad_picture("picture that is text", lambda path: path.write_text("no picture"))
bad_picture("picture that is a folder", lambda path: path.mkdir())
bad_picture("picture that is a pipe", lambda path: os.mkfifo(path))
bad_picture("picture of 3.6 gigapixels", _bomb)
bad_picture("picture is a link out of its folder", _linked)
bad_picture("picture is a link to itself", lambda path: path.symlink_to(path))


def _overlap(root: Path) -> list[str]:
    path = recipe_file(root / "s", train=rows(2), test=rows(1, prefix="r"))
    return ["data", "build", str(path), "--data-dir", str(root / "data")]


case("test question in training", _overlap, 4)


def _archive(root: Path) -> list[str]:
    train = [llava(f"x{k}", shown + str(k), image=f"train/{k:05d}.png") for k in range(3000)]
    return ["data", "build", str(recipe_file(root / "s", train=train)), "--data-dir", str(root / "data")]


case("archive of pictures not unpacked (3,000 rows)", _archive, 4)


changed("probe of texts in a run without any", "probes=[{use: memory}]", code=3)


# ---- gates -----------------------------------------------------------------------------------------------------------
def gate(name: str, text: str) -> None:
    """A gate file of the second stage."""

    def make(root: Path) -> list[str]:
        (root / "gate.yaml").write_text(text)
        return ["plan", "tiny", "--set", f"stages.1.gate={root / 'gate.yaml'}"]

    case(name, make, 2)


_LIMIT = "thresholds: [{metric: success, at_least: 0.5, unit: share}]"
gate("gate's share above 1", "thresholds: [{metric: success, at_least: 95, unit: share}]")
gate("gate's share below 0", "thresholds: [{metric: success, at_least: -1, unit: share}]")
gate("gate's limit true", "thresholds: [{metric: success, at_least: true, unit: share}]")
gate("gate's percent above 100", "thresholds: [{metric: success, at_least: 101, unit: percent}]")
gate("gate's points above 100", "thresholds: [{metric: drawdown, at_most: 200, unit: points}]")
gate("gate's monitor decided first", _LIMIT + "\nmonitor: [{metric: min_acc, at_least: 0.1, unit: share, first: true}]")


# ---- bases -----------------------------------------------------------------------------------------------------------
def base(name: str, damage: Callable[[Path], None], code: int = 2) -> None:
    """A copy of the tiny model with something wrong."""

    def make(root: Path) -> list[str]:
        shutil.copytree(tiny_path(), root / "base")
        damage(root / "base")
        return ["plan", "tiny", "--set", "base.family=hf", "--set", f"base.model={root / 'base'}"]

    case(name, make, code)


def edited(file: str, **changes: Any) -> Callable[[Path], None]:
    """Other values in a JSON file of the base."""

    def damage(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def _indexed(target: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        index = {"metadata": {}, "weight_map": {"lm_head.weight": target}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def _shortened(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 1000)


case(
    "model's folder missing",
    lambda root: ["plan", "tiny", "--set", "base.family=hf", "--set", f"base.model={root}/gone"],
    2,
)
case(
    "model's folder is a file",
    lambda _: ["plan", "tiny", "--set", "base.family=hf", "--set", "base.model=/etc/hostname"],
    2,
)
base("model without config.json", lambda folder: (folder / "config.json").unlink())
base("model's config is a list", lambda folder: (folder / "config.json").write_text("[]"))
base("model's config cut off", lambda folder: (folder / "config.json").write_text('{"model_type": "lla'))
base("model's config of 50,000 levels", lambda folder: (folder / "config.json").write_text("[" * 50_000))
base("model of an unknown type", edited("config.json", model_type="no-such-model"))
base("model that is quantised already", edited("config.json", quantization_config={"quant_method": "awq"}), 3)
base("index that names a pickle outside", _indexed("../../outside.bin"))
base("index that names a pickle inside", _indexed("pytorch_model.bin"))
base("index that names safetensors outside", _indexed("../outside.safetensors"))
base("index that names a missing file", _indexed("part-2.safetensors"))
base("config that names weights outside", edited("config.json", transformers_weights="../w.safetensors"))
base("adapter_config.json in the model's folder", lambda folder: (folder / "adapter_config.json").write_text("{}"))
base("weights cut off", _shortened)
base("weights that are text", lambda folder: (folder / "model.safetensors").write_text("weights"))
base("tokenizer's config is a list", lambda folder: (folder / "tokenizer_config.json").write_text("[]"))
base("tokenizer missing", lambda folder: (folder / "tokenizer.json").unlink())
base("pipe in the model's folder", lambda folder: os.mkfifo(folder / "vocab.txt"))


# ---- adapters --------------------------------------------------------------------------------------------------------
def adapter(name: str, code: int = 3, *, rank: int = 2, wide: int = 64, base_sha: str = "", **changes: Any) -> None:
    """A PEFT folder for one projection of the tiny model, with other settings."""

    def make(root: Path) -> list[str]:
        import torch
        from safetensors.torch import save_file

        (root / "adapter").mkdir()
        place = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
        tensors = {f"{place}.lora_A.weight": torch.ones(rank, wide), f"{place}.lora_B.weight": torch.ones(64, rank)}
        save_file(tensors, root / "adapter" / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "init_lora_weights": True}
        (root / "adapter" / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        if base_sha:
            (root / "adapter" / "mcit.json").write_text(json.dumps({"names": "live", "base_sha256": base_sha}))
        return ["plan", "tiny", "--set", f"base.adapter={root / 'adapter'}"]

    case(name, make, code)


adapter("adapter of a model of another width", wide=48)
adapter("adapter of another base by its checksum", base_sha="f" * 64)
adapter("adapter whose alpha is text", lora_alpha="8")
adapter("adapter with a pattern that never ends", rank=3, rank_pattern={"(.|.)*[XY]": 3})
adapter("adapter with a pattern that is none", rank=3, rank_pattern={"(q_proj": 3})
adapter("adapter of another kind", peft_type="IA3")


# ---- memories --------------------------------------------------------------------------------------------------------
def memory(name: str, damage: Callable[[Path], None], code: int = 5, *more: str, identity: str = "") -> None:
    """The memory of a dialogue with the tiny model, with something wrong; `identity` is that of another encoder."""

    def make(root: Path) -> list[str]:
        from mcit.memory.compact import extract
        from mcit.memory.folder import MemoryFolder

        with MemoryFolder(root / "m", Bag(identity or _tiny_identity()), extract) as folder:
            for number in range(3):
                folder.remember(f"what is {number}", f"thing{number}", recalled=[])
        damage(root / "m")
        given = [part.replace("ROOT", str(root)) for part in more]
        return ["chat", "--model", "tiny", "--memory", str(root / "m"), "--ask", "what is red", *given]

    case(name, make, code)


def _tiny_identity() -> str:
    from mcit.core.interfaces import Silent
    from mcit.memory.embed import model_identity
    from mcit.train.standalone import Standalone, model_config

    return model_identity(Standalone(model_config("tiny", []), reporter=Silent()).digest)


def _one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def _changed(pattern: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = _one(folder, pattern)
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return damage


def _other_things(folder: Path) -> None:
    (folder / "memory.json").rename(folder / "notes.json")


def _file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("memory")


def _encoder(folder: Path) -> None:
    _shortened(Path(shutil.copytree(tiny_path(), folder.parent / "encoder")))


memory("memory of another encoder", lambda _: None, identity="folder 0123456789abcdef")
memory("memory's record edited", _changed("memory.json", '"turns": 3', '"turns": 2'))
memory("memory's entry edited", _changed("entries-*", "thing1", "thing9"))
memory("memory's vectors cut off", lambda folder: os.truncate(_one(folder, "vectors-*"), 100))
memory("memory's entries missing", lambda folder: _one(folder, "entries-*").unlink())
memory("memory without its record", _other_things)
memory("memory is a file", _file)
memory("memory's encoder cut off", _encoder, 2, "--encoder", "ROOT/encoder")
memory("memory's encoder is no folder", lambda _: None, 2, "--encoder", "ROOT/none")
memory("memory with a budget of 0", lambda _: None, 2, "--budget", "0")
case("encoder without a memory", lambda _: ["chat", "--model", "tiny", "--encoder", "x", "--ask", "x"], 2)


# ---- processes, folders, terminals -----------------------------------------------------------------------------------
def launched(name: str, **env: str) -> None:
    """Under a launcher that says something odd."""
    case(name, lambda _: ["plan", "tiny"], 3, env=env)


launched("WORLD_SIZE=x", RANK="0", WORLD_SIZE="x")
launched("RANK=-1", RANK="-1", WORLD_SIZE="2")
launched("RANK beyond WORLD_SIZE", RANK="2", WORLD_SIZE="2")
launched("RANK without WORLD_SIZE", RANK="0")
case("0 processes", lambda _: ["plan", "tiny", "--nproc", "0"], 3)
case("100,000 processes", lambda _: ["plan", "tiny", "--nproc", "100000"], 3)
case("memory that is no size", lambda _: ["plan", "tiny", "--gpu-memory", "lots"], 3)
for verb in ("resume", "status", "eval", "report", "rollback"):
    more = ["--to-stage", "1"] if verb == "rollback" else []
    case(f"{verb} of a folder that is no run", lambda root, v=verb, m=more: [v, str(root), *m], 5)  # type: ignore[misc]
    case(f"{verb} of nothing", lambda root, v=verb, m=more: [v, str(root / "gone"), *m], 5)  # type: ignore[misc]
case("export of a folder that is no run", lambda root: ["export", str(root), "--stage", "1", "--as", "adapter"], 5)
case("runs below a file", lambda _: ["plan", "tiny", "--runs-dir", "/etc/hostname/runs"], 3)
case("runs where no files are kept", lambda _: ["plan", "tiny", "--runs-dir", "/proc/runs"], 3)
case("extending a folder that is no run", lambda root: ["run", "tiny", "--extend", str(root)], 5)
case("model to show rows with unknown", lambda _: ["data", "show", "tiny/word", "--model", "tinny"], 4)


def _escapes(root: Path) -> list[str]:
    path = recipe_file(root / "s", train=[llava("x\x1b[2Jy\u202e", answer=""), *rows(2)], allow_bad=1)
    return ["data", "check", str(path)]


def _bom(root: Path) -> list[str]:
    path = recipe_file(root / "s", train=rows(2))
    text = (root / "s" / "train.json").read_text().replace("\n", "\r\n")
    (root / "s" / "train.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return ["data", "check", str(path)]


def _no_test(root: Path) -> list[str]:
    path = recipe_file(root / "s", train=rows(4), name="n", task="n")
    return ["plan", "tiny", "--set", f"stages=[{{recipe: {path}}}]"]


def _form(root: Path) -> list[str]:
    test = rows(3, prefix="t")
    path = recipe_file(
        root / "s", train=rows(4), test=test, name="f", task="f", eval={"style": "letter", "scorer": "exact"}
    )
    return ["plan", "tiny", "--set", f"stages=[{{recipe: {path}}}]"]


case("terminal escapes in a row's id", _escapes, 0, says=r"x\x1b[2Jy\u202e")
case("byte order mark and CRLF", _bom, 0, says="no problems found")
case("no test rows", _no_test, 0, says="has no rows, so the task is never scored")
case("answers out of the task's form", _form, 0, says="lack the form of their style")
