"""What schemas refuse; that every file of a run fits its own is shown by the runs of other tests."""

import copy

import pytest

from mcit.core import records
from mcit.core.errors import StateError
from mcit.core.stored import valid
from tests.fakes.profiles import start
from tests.fakes.run_dir import plan_record

MODE = {
    "accuracy": 50.0,
    "interval": [40.0, 60.0],
    "accuracy_on_valid": None,
    "constant": 10.0,
    "constant_answer": "",
    "kappa": 0.4,
}
EXAMPLES = {
    records.PlanRecord: plan_record([["a"], ["b"]], method_state={"l2": 1}),
    records.Event: {"time": "t", "event": "layout", "changes": {"a": [1, 2]}},
    records.Holder: {"pid": 1, "host": "h"},
    records.ProgressRecord: {"steps": 1, "tokens": 2, "seconds": 0.0, "loss": None},
    records.ProfileRecord: {"starts": [start()]},
    records.LineageRecord: {
        "base": "b",
        "base_sha256": "0" * 64,
        "kind": "lora",
        "carry": "merge",
        "digest": "1" * 64,
        "stages": [{"folder": "01-a", "kind": "none", "carry": "none", "digest": "2" * 64}],
    },
    records.Reference: {"stage": "../../r/stages/01-a", "manifest_sha256": "0" * 64},
    records.AdapterNote: {"names": "live", "base_sha256": "0" * 64},
    records.AdapterConfig: {"target_modules": ["q"], "peft_type": "LORA"},
    records.MethodState: {"state_version": 1, "state": {}},
    records.StreamsRecord: {"step": 0, "cursors": {"task": 1}, "extra": {}},
    records.EngineRecord: {"step": 0, "optimizer_steps": {"w": 1}, "format": 1},
    records.BlobRecord: {"fingerprint": {}, "bytes": 0, "sha256": "0" * 64, "index": {}},
    records.Generation: {"settings": {}, "rows": 0, "sha256": "0" * 64},
    records.Backend: {"backend": "vllm", "version": "1", "compared": 2, "different": 1, "ids": ["a"]},
    records.Prediction: {
        "id": "a", "index": 0, "text": "", "tokens": 0, "truncated": False, "question": "", "gold": {},
    },  # fmt: skip
    records.PartHead: {"identity": "i"},
    records.PartBatch: {"batch": 0, "rows": []},
    records.Score: {
        "task": "t", "n": 1, "strict": MODE, "fixed": MODE, "format_validity": 1.0, "format_validity_interval": None,
        "lenient": 1.0, "lenient_minus_strict": 0.5, "truncation_rate": 0.0, "mean_length": 1.0,
        "scorer": {"name": "exact", "version": 1, "strict_rule": ""}, "style": "word", "filters": [], "lineage": "l",
        "settings": "s", "rows_sha256": "0" * 64,
    },  # fmt: skip
    records.ScoreElsewhere: {
        "task": "t", "n": 1, "strict": MODE, "fixed": MODE, "format_validity": 1.0, "format_validity_interval": None,
        "lenient": 1.0, "lenient_minus_strict": 0.5, "truncation_rate": None, "mean_length": None,
        "scorer": {"name": "exact", "version": 1, "strict_rule": "r"}, "style": "word", "rows_sha256": "0" * 64,
        "elsewhere": {"file": "f", "sha256": "0" * 64}, "rows": None,
    },  # fmt: skip
    records.Rows: {"id": ["a"], "strict": [0.0], "fixed": [1.0], "valid": [0.5]},
    records.Environment: {"versions": {"torch": None, "mcit": "1"}},
    records.Manifest: {"files": {"a/b": {"bytes": 0, "sha256": "0" * 64}}},
    records.DataManifest: {
        "files": {}, "name": "n", "task": "t", "digest": "0" * 64, "eval": {}, "image": {}, "roots": {"0": None},
        "counts": {"train": 1},
    },  # fmt: skip
    records.ExportRecord: {
        "files": {}, "kind": "merged", "run": "r", "base": "b", "base_sha256": "0" * 64, "stages": ["01-a"],
        "lineage": "1" * 64,
    },  # fmt: skip
}  # fmt: skip
OPTIONAL = {"fixed.interval", "gold"}


def leaves(content, path=()):
    """Places of a nested record: keys and positions."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from leaves(value, (*path, key))


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda m: m.__name__)
def test_an_example_fits_and_no_field_may_be_of_another_type(model):
    """A set is nothing that JSON holds, so no field takes it but those that are the business of somebody else."""
    assert valid(model, EXAMPLES[model], where="f") == EXAMPLES[model]
    free = {"gold", "settings", "state", "extra", "fingerprint", "index", "peft_type", "seed"}
    for path in leaves(EXAMPLES[model]):
        if (
            free & {str(part) for part in path[:-1]}
            or path[-1] == "peft_type"
            or "changes" in path[:1]
            and len(path) > 2
        ):
            continue
        changed = copy.deepcopy(EXAMPLES[model])
        node = changed
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = frozenset()
        with pytest.raises(StateError, match="is not "):
            valid(model, changed, where="f")


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda m: m.__name__)
def test_every_field_is_needed_and_nothing_else_is_known(model):
    needed = [name for name, field in model.model_fields.items() if field.is_required()]
    assert needed
    for name in needed:
        with pytest.raises(StateError, match=f"{name}: Field required"):
            valid(model, {k: v for k, v in EXAMPLES[model].items() if k != name}, where="f")
    open_ones = {m for m in EXAMPLES if m.model_config.get("extra") == "allow"}
    assert len(open_ones) == 8
    more = {**EXAMPLES[model], "another": 1}
    if model in open_ones:
        assert valid(model, more, where="f") == more
    else:
        with pytest.raises(StateError, match="another"):
            valid(model, more, where="f")


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        (records.ProgressRecord, {"steps": -1}, "steps"),
        (records.ProgressRecord, {"seconds": -0.1}, "seconds"),
        (records.ProgressRecord, {"loss": float("nan")}, "loss"),
        (records.Holder, {"pid": 0}, "pid"),
        (records.Holder, {"pid": 2**31}, "pid"),
        (records.EngineRecord, {"format": 2}, "format"),
        (records.Score, {"n": 0}, "n"),
        (records.Score, {"rows_sha256": "0" * 63}, "rows_sha256"),
        (records.Score, {"rows_sha256": "0" * 64 + "\n"}, "rows_sha256"),
        (records.Score, {"format_validity_interval": [1.0]}, "format_validity_interval"),
        (records.Score, {"format_validity_interval": [1.0, 2.0, 3.0]}, "format_validity_interval"),
        (records.Rows, {"valid": [1.5]}, "valid.0"),
        (records.Rows, {"valid": [-0.5]}, "valid.0"),
        (records.Rows, {"valid": []}, "the lists differ in length"),
        (records.Rows, {"id": []}, "the lists differ in length"),
        (records.Rows, {"strict": []}, "the lists differ in length"),
        (records.Rows, {"fixed": []}, "the lists differ in length"),
        (records.Event, {"changes": {"a": [1]}}, "says no changes"),
        (records.Event, {"changes": {"a": "bc"}}, "says no changes"),
        (records.Event, {"event": "accepted_changes", "changes": None}, "says no changes"),
        (records.Event, {"event": "rollback"}, "says nothing that was removed"),
        (records.Event, {"event": "extended"}, "says no digest"),
        (records.Event, {"event": "branched", "run": 3}, "says no run"),
        (records.LineageRecord, {"carry": "lose"}, "carry"),
        (records.ExportRecord, {"stages": ["a/b"]}, "stages.0"),
        (records.ExportRecord, {"stages": ["01-a\n"]}, "stages.0"),
    ],
)
def test_values_out_of_their_range_are_named(model, changes, named):
    with pytest.raises(StateError, match=named):
        valid(model, {**EXAMPLES[model], **changes}, where="f")


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "s/../a", "s//b", "./a", "", "a\0", "a/"])
def test_a_manifest_names_nothing_outside_its_folder(name):
    with pytest.raises(StateError, match="is no path below the folder"):
        valid(records.Manifest, {"files": {name: {"bytes": 1, "sha256": "0" * 64}}}, where="f")


def test_events_without_fields_of_their_own_need_none():
    for event in ("created", "eval", "anything later"):
        valid(records.Event, {"time": "t", "event": event}, where="f")
    valid(records.Event, {"time": "t", "event": "rollback", "removed": []}, where="f")


@pytest.mark.parametrize("key", ["index", "passes"])
def test_a_stage_counts_from_one_and_passes_over_its_batches(key):
    plan = plan_record([["a"]])
    plan["stages"][0][key] = 0
    with pytest.raises(StateError, match=rf"stages\.0\.{key}"):
        valid(records.PlanRecord, plan, where="f")
