"""The recipe step: settings refused, splits untouched, manifest, digests, shipped recipes."""

import json

import pytest

from mcit.core.config import load_yaml, parse
from mcit.core.errors import ConfigError, DataError
from mcit.core.paths import shipped
from mcit.data.asd.cues import CUES
from mcit.data.build import build, check, rows_for
from mcit.data.collect import collect
from mcit.data.folder import DataFolder
from mcit.data.recipe import find_recipe, load_recipe, recipe_digest
from mcit.data.transforms.asd import Asd
from mcit.plan.plan import read_config
from mcit.plan.record import resolved
from tests.fakes.recipes import recipe_file
from tests.fakes.rows import llava, row

DEMO = ("kind", "edible", "naming", "lowvision")


def things(count, prefix="r"):
    """Rows with twenty class names."""
    return [
        llava(f"{prefix}{k}", f"<image>\n{prefix} {k}?\n{CUES['short']}", f"class{k % 20}", image="a.png", style="name")
        for k in range(count)
    ]


def recipe(tmp_path, count=100, *, transforms=None, **settings):
    steps = transforms or [{"use": "asd", "percent": 20, "cells": "classes", **settings}]
    path = recipe_file(
        tmp_path / "s", train=things(count), test=things(5, "t"), transforms=steps, split={"validation": 20}
    )
    return load_recipe(path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"percent": -1}, "from 0 to below 100"),
        ({"percent": 101}, "from 0 to below 100"),
        ({"percent": 100}, "leaves no row in the native style"),
        ({"cells": "clases"}, "did you mean 'classes'?"),
        ({"native": "letter"}, "native"),
        ({"limits": {"brief": [45, 8]}}, "fewest words"),
        ({"unit": "turn"}, "unit"),
        ({"share": 20}, "unknown key"),
    ],
)
def test_settings_that_are_refused_before_anything_is_read(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        recipe(tmp_path, **settings)


def test_limits_are_filled_up():
    config, problems = parse(Asd.Config, {"limits": {"brief": [4, 9]}})
    assert not problems and config.limits == {"brief": (4, 9), "detail": (25, 90)}


def test_only_training_rows_change(tmp_path):
    """100 train rows, 20 of them validation: N=80, so floor(80*20/400) = 4 rows of each style that has a rule."""
    step = recipe(tmp_path)
    folder = DataFolder.open(build(step, data_dir=tmp_path / "a"))
    plain = load_recipe(step.path)
    step.path.write_text(step.path.read_text().replace("percent: 20", "percent: 0"))
    native = DataFolder.open(build(load_recipe(plain.path), data_dir=tmp_path / "b"))
    for name in ("validation.jsonl", "test.jsonl"):
        assert (folder.path / name).read_bytes() == (native.path / name).read_bytes()
    assert folder.counts == native.counts == {"train": 80, "validation": 20, "test": 5}
    assert folder.manifest["styles"]["train"] == {"mcq": 4, "name": 72, "yn": 4}
    (told,) = folder.manifest["transforms"]
    assert told["percent"] == 20 and told["quota"] == 4 and told["rows_before"] == told["rows_after"] == 80
    assert told["styles"]["brief"]["short_by"] == 4
    assert native.manifest["transforms"] == [{"use": "asd", "rows_before": 80, "rows_after": 80, "percent": 0}]


def test_shortfalls_are_warned_of(tmp_path):
    step = recipe(tmp_path)
    texts = [p.what for p in check(step).warnings]
    assert any("style brief has 4 row(s) less than its quota of 4; no answer of a model: 4" in text for text in texts)
    folder = DataFolder.open(build(step, data_dir=tmp_path / "a"))
    assert len([w for w in folder.manifest["warnings"] if w["where"] == "asd"]) == 2


def test_rows_do_not_depend_on_what_stands_in_the_list_before(tmp_path):
    """The seed is the step's own: a further step that changes nothing does not move the choice."""
    one = recipe(tmp_path / "1", transforms=[{"use": "asd", "cells": "classes"}])
    two = recipe(tmp_path / "2", transforms=[{"use": "dedupe"}, {"use": "asd", "cells": "classes"}])
    rows = [DataFolder.open(build(r, data_dir=tmp_path / "d")).rows("train") for r in (one, two)]
    assert [(r.id, r.turns) for r in rows[0]] == [(r.id, r.turns) for r in rows[1]]


def test_steps_before_the_split_may_not_follow(tmp_path):
    with pytest.raises(ConfigError, match=r"transforms\[1\]: runs before the validation split"):
        recipe(tmp_path, transforms=[{"use": "asd"}, {"use": "dedupe"}])


def test_what_the_step_is_given(tmp_path):
    step = recipe(tmp_path, transforms=[{"use": "subsample", "rows": 50}, {"use": "asd", "cells": "classes"}])
    given = rows_for(step, collect(step, tmp_path / "pictures"), step.transforms[1])
    assert len(given) == 30 and all("asd" not in r.meta for r in given)


def test_twice_is_refused(tmp_path):
    step = recipe(tmp_path, transforms=[{"use": "asd", "cells": "classes"}, {"use": "asd", "cells": "classes"}])
    with pytest.raises(DataError, match="diversified already"):
        build(step, data_dir=tmp_path / "d")


def test_digest_follows_answers_but_not_their_time(tmp_path):
    step = recipe(tmp_path, answers="made.jsonl")
    with pytest.raises(DataError, match="file of answers cannot be read"):
        recipe_digest(step)
    line = {"id": "r1", "style": "brief", "source": "s", "status": "refused", "reasons": ["x"], "generator": {}}
    digests = []
    for change in ({"time": "now"}, {"time": "later"}, {"reasons": ["y"]}):
        (tmp_path / "s" / "made.jsonl").write_text(json.dumps({**line, **change}) + "\n")
        digests.append(recipe_digest(step))
    assert digests[0] == digests[1] != digests[2]


def test_digest_follows_the_code_of_the_rules(tmp_path, monkeypatch):
    step = recipe(tmp_path)
    before = recipe_digest(step)
    assert {"cells.py", "demo.py", "cues.py"} <= set(step.transforms[0].identity()["modules"])
    monkeypatch.setattr(Asd, "identity", lambda self: {"modules": {"cells.py": "other"}, "answers": ""})
    assert recipe_digest(step) != before


def test_apply_gives_the_rows_of_run():
    rows = [row("q", f"c{k % 9}", id=f"r{k}", style="name") for k in range(40)]
    step = Asd(Asd.Config(cells="classes"))
    assert step.apply(rows, seed=0) == step.run(rows, seed=1).rows and step.after_split


@pytest.mark.parametrize("name", [f"demo/{t}" for t in DEMO] + [f"tiny/{t}" for t in ("letter", "yesno", "word")])
def test_shipped_recipes_differ_from_the_plain_ones_in_the_step_alone(name):
    plain, diversified = (load_yaml(find_recipe(n)) for n in (name, f"{name}-asd20"))
    (step,) = diversified.pop("transforms")
    assert step["use"] == "asd" and step["percent"] == 20
    assert diversified == {**plain, "name": f"{name}-asd20"} and diversified["task"] == plain["task"]


@pytest.mark.parametrize("name", ["tiny/letter", "tiny/yesno", "tiny/word", "demo/edible"])
def test_shipped_recipes_fill_every_quota(name, tmp_path):
    """tiny: N=120, floor(120*20/400) = 6 each. demo: N=320, 16 each."""
    folder = DataFolder.open(build(load_recipe(find_recipe(f"{name}-asd20")), data_dir=tmp_path))
    (told,) = folder.manifest["transforms"]
    each = 6 if name.startswith("tiny") else 16
    assert told["quota"] == each and told["native_rows"] == folder.counts["train"] - 4 * each
    assert {item["rows"] for item in told["styles"].values()} == {each}
    plain = DataFolder.open(build(load_recipe(find_recipe(name)), data_dir=tmp_path))
    for split in ("validation.jsonl", "test.jsonl"):
        assert (folder.path / split).read_bytes() == (plain.path / split).read_bytes()


def test_demo_config_differs_from_the_demo_in_the_recipes_alone():
    plain, diversified = (resolved(read_config(name)[0]) for name in ("demo", "demo-asd"))
    for stage in diversified["stages"]:
        stage["recipe"] = stage["recipe"].removesuffix("-asd20")
    assert {**diversified, "name": "demo"} == plain
    assert (shipped("configs") / "demo-asd.yaml").is_file()
