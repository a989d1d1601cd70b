import pytest
import torch

from mcit.cli.main import main
from mcit.core.errors import ConfigError
from mcit.core.files import read_json
from mcit.export.export import export_stage
from mcit.export.source import open_source
from mcit.export.verify import logits, probe
from mcit.models.combine import combination, combine, place
from mcit.models.load import load_base, load_processor
from tests.fakes.models import tiny_model, tiny_path
from tests.fakes.trained_run import make_run

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_an_exported_combination_is_the_combination(tmp_path, kind):
    run, _ = make_run(tmp_path, ("merge", "stack", "merge"))
    spec = combination("ties", committed=[1, 2, 3], stages=[1, 3], density=0.4)
    done = export_stage(run, stage=3, kind=kind, combine=spec)
    assert done.folder == run.layout.exports / f"{spec.name}-{kind}"
    assert done.record["combine"] == spec.json() and done.record["stages"] == ["01-r0", "03-r2"]
    model = tiny_model()
    place(model, combine(tiny_model(), open_source(run, 3).lineage, spec))
    batch = probe(load_processor(tiny_path()))
    wanted = logits(model, batch, device=CPU)
    if kind == "merged":
        found = logits(load_base(done.folder), batch, device=CPU)
    else:
        from peft import PeftModel

        found = logits(PeftModel.from_pretrained(tiny_model(), str(done.folder)), batch, device=CPU)
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert done.record["difference"] <= 1e-5 * done.record["largest_logit"]
    text = (done.folder / "README.md").read_text()
    assert "combined by ties" in text and "weights 1, 1, share of values kept 0.4" in text
    assert "never trained together" in text
    assert not export_stage(run, stage=3, kind=kind, combine=spec).made


def test_after_a_rejected_stage(tmp_path):
    run, _ = make_run(tmp_path, ("merge",) * 3, rejected=(2,))
    assert main(["export", str(run.layout.root), "--combine", "linear", "--out", str(tmp_path / "out")]) == 0
    assert read_json(tmp_path / "out" / "export.json")["stages"] == ["01-r0", "03-r2"]
    assert export_stage(run, stage=3, kind="delta").record["relative_to_stages"] == ["01-r0"]


def test_on_a_quantised_base_and_on_a_given_adapter(tmp_path):
    run, _ = make_run(tmp_path / "low", ("stack", "stack"), dtype="nf4")
    spec = combination("linear_svd", committed=[1, 2], rank=8)
    assert export_stage(run, stage=2, kind="adapter", combine=spec).record["rank"] == 8
    assert export_stage(run, stage=2, kind="merged", combine=spec).record["dtype"] == "bf16"
    first, _ = make_run(tmp_path / "first", ("merge",))
    given = {"adapter": str(first.layout.stage("01-r0") / "adapter")}
    run, _ = make_run(tmp_path / "given", ("merge", "merge"), base=given)
    record = export_stage(run, stage=2, kind="adapter", combine=combination("linear", committed=[1, 2])).record
    assert record["rank"] == 8 and record["base_adapter"] == given["adapter"]  # four of each


def test_a_delta_or_a_shortened_combination_is_refused(tmp_path):
    run, _ = make_run(tmp_path, ("merge", "merge"))
    spec = combination("linear", committed=[1, 2])
    for options in ({"kind": "delta"}, {"kind": "adapter", "max_rank": 2}):
        with pytest.raises(ConfigError, match="--as adapter and merged"):
            export_stage(run, stage=2, combine=spec, **options)


def test_the_command(tmp_path, capsys):
    run, _ = make_run(tmp_path, ("merge", "merge", "merge"))
    root = str(run.layout.root)
    asked = ["export", root, "--combine", "dare_svd", "--stages", "1,3", "--weights", "1,0.5", "--density", "0.9"]
    assert main([*asked, "--rank", "6", "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "adapter of stages 01-r0, 03-r2" in out and "combined by dare_svd, weights 1, 0.5" in out
    for wrong, text in (
        ([], "say what to export"),
        (["--combine", "linear", "--stage", "1"], "say what to export"),
        (["--stage", "1", "--weights", "1"], "goes with a combination"),
        (["--combine", "linear", "--stages", "1,x"], "no list of numbers"),
        (["--combine", "linear", "--stages", "1,9"], "stage 9 is not committed"),
    ):
        assert main(["export", root, *wrong]) == 2, wrong
        assert text in capsys.readouterr().err
