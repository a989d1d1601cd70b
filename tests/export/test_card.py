"""The model card: every section from the run's own files, code that runs, no path of this machine."""

import subprocess
import sys

import pytest
import torch
import yaml

from mcit.core.files import read_json, write_text
from mcit.evals.score import score_predictions, write_score
from mcit.export.card import base_licence, canaries, card, loading
from mcit.export.export import export_stage
from mcit.export.source import open_source
from mcit.export.verify import logits, probe
from mcit.models.load import load_processor
from tests.fakes.models import tiny_path
from tests.fakes.trained_run import make_run

ANSWER = {"question": "q", "truncated": False, "tokens": 1}


OF = {"task": "r0", "filters": [], "lineage": "x", "settings": "x"}


def scored(folder, right, **extra):
    """A score of four answers, so many of them right; `extra` is what goes into it beside."""
    answers = ["yes"] * right + ["no"] * (4 - right)
    gold = {"answer": "yes", "style": ""}
    rows = [{**ANSWER, "id": str(i), "text": text, "gold": gold} for i, text in enumerate(answers)]
    write_score(folder, score_predictions(rows, scorer="exact", style="", extra={**OF, **extra}))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, cache):
    """A run with scores and its three exports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        home = tmp_path_factory.mktemp("card")
        run, _ = make_run(home, ("merge", "merge"))
        scored(run.layout.evals(0) / "r0", 1)
        scored(run.layout.evals(2) / "r0", 3)
        return run, {kind: export_stage(run, stage=2, kind=kind) for kind in ("adapter", "delta", "merged")}


@pytest.mark.parametrize("kind", ["adapter", "delta", "merged"])
def test_a_card_says_base_lineage_data_scores_and_how_to_load(exported, kind):
    run, exports = exported
    text = (exports[kind].folder / "README.md").read_text()
    record = exports[kind].record
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == ("transformers" if kind == "merged" else "peft") and "mcit" in front["tags"]
    for title in ("What it holds", "Base", "Lineage", "Data", "Scores", "How to load it"):
        assert f"## {title}" in text
    assert record["base_sha256"] in text and record["lineage"] in text and "01-r0" in text and "02-r1" in text
    assert "| r0 | 25.00 | 75.00 | 75.00 |" in text and "| r1 |" not in text.split("## Scores")[1]
    assert "digest-r0" in text and "recipe not at hand" in text
    assert str(tiny_path().parent) not in text and str(run.layout.root.parent) not in text
    assert "README.md" in record["files"]


def test_a_delta_says_exactly_what_it_holds(exported):
    _, exports = exported
    record, text = exports["delta"].record, (exports["delta"].folder / "README.md").read_text()
    whole = read_json(exports["delta"].folder / "adapter_config.json")["modules_to_save"]
    assert record["holds"]["matrices"] == 14 and record["holds"]["ranks"] == [4] and record["holds"]["unchanged"] == []
    assert len(record["holds"]["whole"]) == 4 and whole == sorted(
        {n.rpartition(".")[0] for n in record["holds"]["whole"]}
    )
    assert "low-rank updates of 14 matrices, ranks 4" in text and "not as differences: `model.multi_modal" in text
    assert f"the merged weights after stages 01-r0 (lineage `{record['relative_to']}`)" in text
    assert (
        exports["adapter"].record["holds"]["ranks"] == [8]
        and "relative to: the original base" in (exports["adapter"].folder / "README.md").read_text()
    )


def test_what_peft_adds_or_cannot_name_is_said(tmp_path):
    full = ("model.multi_modal_projector.linear_1.weight",)
    run, _ = make_run(tmp_path, ("merge",), full=full)
    record = export_stage(run, stage=1, kind="adapter", out=tmp_path / "out").record
    assert record["holds"]["whole"] == list(full)
    assert record["holds"]["unchanged"] == ["model.multi_modal_projector.linear_1.bias"]
    assert "unchanged tensors that lie in the same modules" in (tmp_path / "out" / "README.md").read_text()
    record = {"kind": "adapter", "relative_to": "base", "base": "me/base", "not_in_peft": ["x"]}
    assert 'load_file("this/folder/extra.safetensors")' in loading(record, "AutoModelForImageTextToText")


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_code_of_the_card_runs(exported, kind, tmp_path):
    """As printed, but for the two places that a reader fills in."""
    _, exports = exported
    text = (exports[kind].folder / "README.md").read_text()
    code = text.split("```python\n")[1].split("\n```")[0]
    code = code.replace("this/folder", str(exports[kind].folder)).replace(f'"{tiny_path().name}"', f'"{tiny_path()}"')
    check = "assert processor.chat_template and next(model.parameters()).shape\n"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True, cwd=tmp_path, capture_output=True)


def test_the_code_of_a_first_delta_puts_the_starting_adapter_below_it(tmp_path):
    from peft import PeftModel

    began = make_run(tmp_path / "first", ("merge",))[0].layout.stage("01-r0") / "adapter"
    run, _ = make_run(tmp_path / "given", ("merge",), base={"adapter": str(began)})
    done = export_stage(run, stage=1, kind="delta", out=tmp_path / "out")
    text = (done.folder / "README.md").read_text()
    assert "relative to: the base with the adapter that the run began with" in text and str(began) not in text
    code = loading(done.record, "AutoModelForImageTextToText").replace(f'"{tiny_path().name}"', f'"{tiny_path()}"')
    code = code.replace("this/folder", str(done.folder)).replace("adapter that the run began with", str(began))
    scope = {}
    exec(code, scope)
    assert isinstance(scope["model"], PeftModel)
    batch, cpu = probe(load_processor(tiny_path())), torch.device("cpu")
    wanted = logits(open_source(run, 1).model(1), batch, device=cpu)
    torch.testing.assert_close(logits(scope["model"], batch, device=cpu), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "words"), [("adapter", "language decoder in nf4"), ("merged", "differ from its by 12.0%")]
)
def test_of_a_quantised_run_the_card_says_what_is_about_other_weights(exported, tmp_path, kind, words):
    """An adapter fits the quantised base, and the code loads the stored one; merged weights are not what was scored."""
    run, exports = exported
    for dtype in ("nf4", "fp32"):
        record = {**exports[kind].record, "base_dtype": dtype, "quantised_difference_share": 0.12}
        text = card(run, record=record, base=tmp_path, evals=None, model_class="AutoModelForImageTextToText")
        assert (words in text) is (dtype == "nf4") and ("score it before" in text) is (
            dtype == "nf4" and kind == "merged"
        )


def test_the_scores_of_a_shortened_adapter_are_said_to_be_the_whole_ones(exported, tmp_path):
    run, exports = exported
    text = (exports["adapter"].folder / "README.md").read_text()
    assert "shortened" not in text and "before you rely" not in text
    done = export_stage(run, stage=2, kind="adapter", out=tmp_path / "short", max_rank=2)
    text = (done.folder / "README.md").read_text()
    assert "shortened to rank 2 by SVD" in text and "Of the adapter before it was shortened to rank 2" in text
    assert f"took {done.record['truncation_error']:.1%} of its norm" in text


def test_filters_and_chosen_answers_are_told_beside_the_scores(exported, tmp_path):
    run, exports = exported
    scored(tmp_path / "evals" / "r0", 3, filters=["strip"], answered={"chosen": 3, "written": 1})
    given = {"record": exports["adapter"].record, "base": tmp_path, "model_class": "AutoModelForImageTextToText"}
    text = card(run, evals=tmp_path / "evals", **given)
    assert "In percent. Answers went through filters: strip. 3 answers were chosen among the options" in text
    scored(tmp_path / "plain" / "r0", 3)
    assert "In percent.\n" in card(run, evals=tmp_path / "plain", **given)


def test_licence_and_hub_id_of_the_base(exported, tmp_path):
    run, exports = exported
    assert base_licence(tmp_path) == {"id": "", "text": "not stated in its card"}
    write_text(tmp_path / "README.md", "---\nlicense: apache-2.0\nlanguage: en\n---\n# Theirs\n")
    write_text(tmp_path / "LICENSE", "…")
    assert base_licence(tmp_path) == {"id": "apache-2.0", "text": "`apache-2.0`; see LICENSE here"}
    record = {**exports["adapter"].record, "base": "owner/model"}
    text = card(run, record=record, base=tmp_path, evals=None, model_class="AutoModelForImageTextToText")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "owner/model" and front["license"] == "apache-2.0" and "Not scored." in text
    for odd in (
        "---\nlicense: 2024-99-99\n---\n",
        f"---\n{'[' * 3000}\n---\n",
        "---\n[\n---\n",
        "---\nlicense: [a]\n---\n",
        "no front matter",
    ):
        write_text(tmp_path / "README.md", odd)
        assert base_licence(tmp_path)["id"] == ""


def test_planted_canaries_are_told():
    assert canaries({}) == [] and canaries({"canaries": 0}) == []
    assert "128 canary rows" in canaries({"canaries": 128})[1]
