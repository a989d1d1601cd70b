import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch

from mcit.cli.main import main
from mcit.core.errors import StateError
from mcit.core.tensorfile import load_tensors, save_tensors
from mcit.export import merged
from mcit.export.export import export_stage
from mcit.export.source import open_source
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


def test_what_training_never_changes_is_the_bases_bytes(tmp_path):
    run, _ = make_run(tmp_path, ("merge",))
    done = export_stage(run, stage=1, kind="merged", out=tmp_path / "out")
    names = {p.name for p in tiny_path().iterdir() if p.suffix in (".json", ".jinja")}
    assert set(done.record["copied"]) == names >= {"config.json", "generation_config.json", "tokenizer.json"}
    assert all((done.folder / name).read_bytes() == (tiny_path() / name).read_bytes() for name in names)
    assert {p.name for p in done.folder.iterdir()} == names | {"model.safetensors", "README.md", "export.json"}
    assert all(p.stat().st_mode & stat.S_IROTH for p in done.folder.iterdir())
    old, new = (load_tensors(p / "model.safetensors") for p in (tiny_path(), done.folder))
    assert old.keys() == new.keys()


def test_a_base_without_a_generation_config_gives_an_export_without_one(tmp_path):
    shutil.copytree(tiny_path(), tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").unlink()
    template = tmp_path / "mine.jinja"
    template.write_text(load_processor(tiny_path()).chat_template + " ")
    base = {"family": "hf", "model": str(tmp_path / "base"), "chat_template": str(template)}
    run, _ = make_run(tmp_path, ("merge",), base=base)
    folder = export_stage(run, stage=1, kind="merged", out=tmp_path / "out").folder
    assert not (folder / "generation_config.json").exists()
    assert load_processor(folder).chat_template == template.read_text()


def test_a_bf16_base_gives_one_dtype_and_a_stated_difference(tmp_path):
    run, _ = make_run(tmp_path, ("merge", "stack"), dtype="bf16")
    done = export_stage(run, stage=2, kind="merged", out=tmp_path / "out")
    assert {p.dtype for p in load_base(done.folder, dtype="bf16").parameters()} == {torch.bfloat16}
    assert json.loads((done.folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert 0 < done.record["difference_share"] < 0.05


LOAD = """
import sys
sys.modules["mcit"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, batch, out = sys.argv[1:]
torch.set_num_threads(1)
inputs = load_file(batch)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
AutoProcessor.from_pretrained(folder, backend="pil", trust_remote_code=True)
with torch.no_grad():
    found = model.eval()(**inputs).logits[inputs["attention_mask"].bool()]
save_file({"logits": found}, out)
"""


def remote_code_base(folder):
    """A random model of the embedded family's class with a tiny decoder: its code is in one file of the folder."""
    from transformers import CLIPImageProcessorPil, LlamaConfig, LlavaProcessor

    from mcit.models.families import embedded_llava, tiny

    tokenizer = tiny.byte_tokenizer()
    config = embedded_llava.EmbeddedLlavaConfig(
        vision_config=embedded_llava.Lite0VisionConfig(image_size=64),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(tiny.IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        embedded_llava.EmbeddedLlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=tiny.TEMPLATE,
    ).save_pretrained(folder)


def test_a_model_with_code_of_its_own_loads_where_mcit_is_not_installed(tmp_path):
    from safetensors.torch import load_file

    remote_code_base(tmp_path / "base")
    base = {"family": "hf", "model": str(tmp_path / "base"), "trust_remote_code": True, "attention": "eager"}
    run, _ = make_run(tmp_path, ("merge",), base=base)
    done = export_stage(run, stage=1, kind="merged", out=tmp_path / "out")
    assert len(done.record["remote_code"]) == 1
    assert set(json.loads((done.folder / "config.json").read_text())["auto_map"]) == {
        "AutoConfig",
        "AutoModelForImageTextToText",
    }
    batch = probe(load_processor(done.folder, trust_remote_code=True))
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_BT, **batch.pixels}
    save_tensors(tmp_path / "batch.safetensors", inputs)
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    env.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", LOAD, done.folder, tmp_path / "batch.safetensors", tmp_path / "found"]
    subprocess.run(list(map(str, command)), check=True, cwd=tmp_path, env=env, capture_output=True)
    wanted = logits(open_source(run, 1).model(1), batch, device=CPU)
    found = load_file(tmp_path / "found")["logits"]
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", ["nf4", "int8"])
def test_a_quantised_run_is_merged_into_the_base_in_bf16_and_says_how_far_that_is(tmp_path, dtype, capsys):
    run, files = make_run(tmp_path, ("stack", "keep"), dtype=dtype)
    done = export_stage(run, stage=2, kind="merged", out=tmp_path / "out")
    batch = probe(load_processor(done.folder))
    config = json.loads((done.folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    written = load_base(done.folder, dtype="bf16")
    by_sum = by_hand(tiny_model(), files, ("merge", "merge"))
    share = float((logits(written, batch, device=CPU, autocast=True) - logits(by_sum, batch, device=CPU)).norm())
    assert share / float(logits(by_sum, batch, device=CPU).norm()) < 0.05  # bf16 rounding of the full-precision merge
    trained = logits(open_source(run, 2).model(2), batch, device=CPU)
    gap = trained - logits(written, batch, device=CPU, autocast=True)
    record = done.record
    assert record["trained_on"] == dtype and record["written_as"] == record["dtype"] == "bf16"
    assert record["quantised_difference"] == pytest.approx(float(gap.abs().max()), rel=1e-4)
    assert record["quantised_difference_share"] == pytest.approx(float(gap.norm() / trained.norm()), rel=1e-4)
    assert record["quantised_difference_share"] > 1e-3 and record["difference_share"] < 0.05
    assert main(["export", str(run.layout.root), "--stage", "2", "--as", "merged", "--out", str(done.folder)]) == 0
    out = capsys.readouterr().out
    assert (
        f"trained on {dtype} weights, written for bf16 ones" in out and f"{record['quantised_difference']:.2e}" in out
    )


def test_of_a_quantised_run_the_written_files_are_checked_strictly(tmp_path, monkeypatch):
    """A file that differs from the merged model in memory is refused, although a difference to the trained one is not."""
    run, _ = make_run(tmp_path, ("keep",), dtype="nf4")
    real = merged.load_base

    def altered(path, **settings):
        model = real(path, **settings)
        model.lm_head.weight.data *= 1.01
        return model

    monkeypatch.setattr(merged, "load_base", altered)
    with pytest.raises(StateError, match="reloaded folder differs"):
        export_stage(run, stage=1, kind="merged", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
