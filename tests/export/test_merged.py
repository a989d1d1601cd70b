import json
import stat

import pytest
import torch

from mcit.core.files import write_json
from mcit.export.export import export_stage
from mcit.export.merged import carry_code
from mcit.export.verify import logits, probe
from mcit.models.load import load_base, load_processor
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.trained_run import by_hand, make_run

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "carries", [("merge", "merge"), ("keep", "keep"), ("stack", "stack"), ("merge", "none"), ("none", "merge")]
)
def test_merged_weights_are_the_trained_model(tmp_path, carries):
    run, files = make_run(tmp_path, carries)
    done = export_stage(run, stage=2, kind="merged", out=tmp_path / "out")
    batch = probe(load_processor(done.folder))
    found = logits(load_base(done.folder), batch, device=CPU)
    wanted = logits(by_full(files, carries), batch, device=CPU)
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert done.record["difference"] <= 1e-5 * done.record["largest_logit"]


def by_full(files, carries):
    """`by_hand` stage by stage, because full weights replace what adapters below them added."""
    if "none" not in carries:
        return by_hand(tiny_model(), files, carries)
    model = tiny_model()
    for file in files:
        model = by_hand(model, [file], ("merge",))
    return model


def test_processor_template_and_generation_config_come_along(tmp_path):
    run, _ = make_run(tmp_path, ("merge",))
    folder = export_stage(run, stage=1, kind="merged", out=tmp_path / "out").folder
    assert load_processor(folder).chat_template == load_processor(tiny_path()).chat_template
    old, new = (json.loads((p / "generation_config.json").read_text()) for p in (tiny_path(), folder))
    assert old["eos_token_id"] == new["eos_token_id"]
    assert all(p.stat().st_mode & stat.S_IROTH for p in folder.iterdir())
    assert not (folder / "adapter_config.json").exists()


def test_a_bf16_base_gives_one_dtype_and_a_stated_difference(tmp_path):
    run, _ = make_run(tmp_path, ("merge", "stack"), dtype="bf16")
    done = export_stage(run, stage=2, kind="merged", out=tmp_path / "out")
    assert {p.dtype for p in load_base(done.folder, dtype="bf16").parameters()} == {torch.bfloat16}
    assert json.loads((done.folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert 0 < done.record["difference_share"] < 0.05


def test_code_files_and_their_map_travel(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir(), out.mkdir()
    (base / "modelling.py").write_text("X = 1\n")
    (base / "LICENSE").write_text("free")
    write_json(base / "config.json", {"auto_map": {"AutoConfig": "modelling.C"}, "old": 1})
    write_json(out / "config.json", {"new": 1})
    write_json(base / "tokenizer_config.json", {"auto_map": {"A": "b"}})
    write_json(out / "tokenizer_config.json", {"auto_map": {"A": "own"}})
    carry_code(base, out)
    assert (out / "modelling.py").read_text() == "X = 1\n" and (out / "LICENSE").exists()
    assert json.loads((out / "config.json").read_text()) == {"new": 1, "auto_map": {"AutoConfig": "modelling.C"}}
    assert json.loads((out / "tokenizer_config.json").read_text())["auto_map"] == {"A": "own"}
