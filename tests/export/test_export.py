import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from mcit.cli.main import main
from mcit.core.errors import ConfigError, StateError
from mcit.core.records import ExportRecord
from mcit.core.stored import check_manifest
from mcit.core.tensorfile import save_tensors
from mcit.evals.audit import audit
from mcit.export import adapter
from mcit.export.export import export_stage
from mcit.export.source import open_source
from mcit.export.verify import logits, probe
from mcit.models.load import load_processor
from tests.export.test_card import scored
from tests.fakes.hub import served
from tests.fakes.models import tiny_path
from tests.fakes.run_dir import killed_at
from tests.fakes.trained_run import PROJECTOR, make_run

PLAIN = """
import json, sys
sys.modules["mcit"] = None
base, adapter, merged, batch, out = sys.argv[1:]
import torch
from safetensors.torch import load_file, save_file
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
inputs = load_file(batch)
result = {}
for name in ("adapter", "merged"):
    folder = base if name == "adapter" else merged
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    if name == "adapter":
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.no_grad():
        result[name] = model(**inputs).logits[inputs["attention_mask"].bool()]
        first = {k: v[:1] for k, v in inputs.items()}
        length = int(first["attention_mask"].sum())
        first = {k: v[:, :length] if k != "pixel_values" else v for k, v in first.items()}
        made = model.generate(**first, do_sample=False, max_new_tokens=12)
        result[name + "_answer"] = made[0, length:].contiguous()
AutoProcessor.from_pretrained(merged, backend="pil")
save_file(result, out)
"""


def test_adapter_and_merged_load_where_mcit_is_not_installed(tmp_path):
    run, _ = make_run(tmp_path, ("merge", "keep"))
    for kind in ("adapter", "merged"):
        export_stage(run, stage=2, kind=kind, out=tmp_path / kind)
    batch = probe(load_processor(tiny_path()))
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_BT, **batch.pixels}
    save_tensors(tmp_path / "batch.safetensors", inputs)
    paths = [tiny_path(), tmp_path / "adapter", tmp_path / "merged", tmp_path / "batch.safetensors", tmp_path / "found"]
    subprocess.run([sys.executable, "-I", "-c", PLAIN, *map(str, paths)], check=True, cwd=tmp_path, capture_output=True)
    from safetensors.torch import load_file

    found = load_file(tmp_path / "found")
    trained = open_source(run, 2).model(2)
    wanted = logits(trained, batch, device=torch.device("cpu"))
    length = int(batch.attention_BT[0].sum())
    with torch.no_grad():
        answer = trained.generate(
            input_ids=batch.input_ids_BT[:1, :length],
            attention_mask=batch.attention_BT[:1, :length],
            pixel_values=batch.pixels["pixel_values"][:1],
            do_sample=False,
            max_new_tokens=12,
        )[0, length:]
    for kind in ("adapter", "merged"):
        assert (found[kind] - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
        assert torch.equal(found[f"{kind}_answer"], answer) and len(answer) > 0


def test_the_record_names_base_stages_and_files(tmp_path):
    run, _ = make_run(tmp_path, ("merge",))
    done = export_stage(run, stage=1, kind="adapter")
    assert done.folder == run.layout.exports / "01-r0-adapter" and done.made
    record = json.loads((done.folder / "export.json").read_text())
    assert {key: value for key, value in record.items() if key != "seal"} == done.record
    assert record["base"] == str(tiny_path()) and len(record["base_sha256"]) == 64
    check_manifest(done.folder, name="export.json", model=ExportRecord)
    own = {"adapter_config.json", "adapter_model.safetensors", "mcit.json", "README.md"}
    assert set(record["files"]) == own | set(record["copied"]) and "config.json" not in record["copied"]
    assert AutoProcessor.from_pretrained(done.folder, backend="pil").chat_template
    assert run.ledger.events("export")[0]["kind"] == "adapter"


def test_a_card_written_before_the_scores_is_told(tmp_path, capsys):
    run, _ = make_run(tmp_path, ("merge", "merge"))
    out = tmp_path / "out"
    export_stage(run, stage=1, kind="adapter", out=out)
    assert "Not scored." in (out / "README.md").read_text()
    scored(run.layout.evals(1) / "r0", 2)
    assert main(["export", str(run.layout.root), "--stage", "1", "--as", "adapter", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "was there already" in said and "its card is older than what the run knows by now" in said


def test_the_same_export_again_changes_nothing_and_another_one_is_refused(tmp_path):
    run, _ = make_run(tmp_path, ("merge", "merge"))
    out = tmp_path / "out"
    export_stage(run, stage=1, kind="adapter", out=out)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    again = export_stage(run, stage=1, kind="adapter", out=out)
    assert not again.made and not again.outdated
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()} == before
    for other in (
        {"stage": 2, "kind": "adapter"},
        {"stage": 1, "kind": "merged"},
        {"stage": 1, "kind": "adapter", "max_rank": 2},
    ):
        with pytest.raises(StateError, match="already exists"):
            export_stage(run, out=out, **other)
    (out / "adapter_config.json").write_text("{}")
    with pytest.raises(StateError, match="checksum differs"):
        export_stage(run, stage=1, kind="adapter", out=out)
    (tmp_path / "mine").mkdir()
    with pytest.raises(StateError, match="already exists"):
        export_stage(run, stage=1, kind="adapter", out=tmp_path / "mine")


def test_the_ledger_says_where_every_copy_lies(tmp_path, monkeypatch):
    """Before, paths as given, so an audit from another folder found none of them; and of equal exports the first alone."""
    run, _ = make_run(tmp_path, ("merge",))
    monkeypatch.chdir(tmp_path)
    for out in (None, Path("a"), Path("b"), Path("b")):
        export_stage(run, stage=1, kind="adapter", out=out)
    outs = [event["out"] for event in run.ledger.events("export")]
    assert outs == ["exports/01-r0-adapter", str(tmp_path / "a"), str(tmp_path / "b")]
    monkeypatch.chdir(run.layout.root)
    (tmp_path / "b" / "README.md").write_text("another card")
    (found,) = [part for part in audit(run) if part.name == "exports"]
    assert found.checked == 3 and [p.where for p in found.problems] == [str(tmp_path / "b" / "README.md")]


def test_an_export_above_tolerance_leaves_nothing(tmp_path, monkeypatch):
    run, _ = make_run(tmp_path, ("merge",))
    real = adapter.reloaded
    monkeypatch.setattr(adapter, "reloaded", lambda *args, **kwargs: real(*args, **kwargs) + 1e-3)
    with pytest.raises(StateError, match="differs from the trained model"):
        export_stage(run, stage=1, kind="adapter", out=tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"]
    assert run.ledger.events("export") == []


def test_max_rank_goes_with_adapter_only(tmp_path):
    run, _ = make_run(tmp_path, ("merge",))
    for options in (
        {"kind": "merged", "max_rank": 2},
        {"kind": "delta", "max_rank": 2},
        {"kind": "adapter", "max_rank": 0},
    ):
        with pytest.raises(ConfigError, match="--as adapter"):
            export_stage(run, stage=1, out=tmp_path / "out", **options)


def test_a_folder_among_the_runs_own_files_is_refused(tmp_path):
    run, _ = make_run(tmp_path, ("merge",))
    for name in ("stages/02-mine", "mine"):
        with pytest.raises(ConfigError, match="among the run's own files"):
            export_stage(run, stage=1, kind="adapter", out=run.layout.root / name)
        assert not (run.layout.root / name).exists()
    assert export_stage(run, stage=1, kind="adapter", out=run.layout.exports / "mine").made


def test_a_killed_export_is_whole_or_absent_and_runs_again(tmp_path, monkeypatch):
    """Only what writes is run: reloading and comparing need seconds and touch no file."""
    run, files = make_run(tmp_path, ("merge",))

    def write_only(source, folder, batch, *, max_rank):
        unnamed, _ = adapter.write_folder(source, folder, files[0], names=list(PROJECTOR))
        return {"relative_to": "base", "not_in_peft": unnamed, "holds": adapter.holds(files[0], files[0])}

    monkeypatch.setattr(adapter, "write", write_only)
    monkeypatch.setattr("mcit.export.export.probe", lambda processor: None)
    export_stage(run, stage=1, kind="adapter", out=tmp_path / "straight")
    for number in itertools.count(1):
        out = tmp_path / f"k{number}" / "out"
        if not killed_at(number, lambda out=out: export_stage(run, stage=1, kind="adapter", out=out)):
            break
        if out.exists():
            check_manifest(out, name="export.json", model=ExportRecord)
        export_stage(run, stage=1, kind="adapter", out=out)
        assert [p.name for p in out.parent.iterdir()] == ["out"]
        for path in (tmp_path / "straight").iterdir():
            assert (out / path.name).read_bytes() == path.read_bytes()
    assert number > 8


def test_the_command(tmp_path, capsys, monkeypatch):
    run, _ = make_run(tmp_path, ("merge", "merge"))
    root = str(run.layout.root)
    assert main(["export", root, "--stage", "2", "--as", "adapter", "--out", str(tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == str(tmp_path / "a") and found["made"] is True and found["rank"] == 8
    assert main(["export", root, "--stage", "2", "--max-rank", "2", "--out", str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "shortened to rank 2: relative error" in out and "sha256" in out and str(tmp_path / "b") in out
    with served(monkeypatch) as hub:
        push = ["--out", str(tmp_path / "a"), "--push", "me/mine", "--private"]
        assert main(["export", root, "--stage", "2", *push]) == 0
    assert f"pushed: {hub.url}/me/mine" in capsys.readouterr().out and hub.created["me/mine"]["private"]
    assert ("me/mine", "adapter_model.safetensors") in hub.files
    assert run.ledger.events("pushed")[0]["repository"] == "me/mine"
    assert main(["export", root, "--stage", "2", "--push", "mine"]) == 2 and not run.layout.exports.exists()
    assert main(["export", root, "--stage", "2", "--private"]) == 2
    assert main(["export", root, "--stage", "9"]) == 5
    assert "no stage 9" in capsys.readouterr().err
    assert main(["export", root, "--stage", "2", "--as", "merged", "--max-rank", "2"]) == 2
    assert main(["export", str(tmp_path / "none"), "--stage", "1"]) == 5
