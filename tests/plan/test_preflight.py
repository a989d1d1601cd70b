import pytest
import torch

from mcit.core.errors import PlanError
from mcit.core.types import Claims
from mcit.data.folder import DataFolder
from mcit.methods.base import Method
from mcit.models.load import load_base
from mcit.plan.preflight import context_length, make_encoder, sampled, skeleton, train_sizes, trained_parameters
from tests.fakes.bench import plan_of
from tests.fakes.models import adapted
from tests.fakes.steps import rows


def test_counts_on_the_skeleton_equal_the_real_model():
    plan = plan_of()
    model = load_base(plan.model_path)
    adapted(model, rank=4)
    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained_parameters(skeleton(plan), plan.stages[0]) == real
    assert skeleton(plan).lm_head.weight.is_meta


def test_context_length_is_the_language_models():
    assert context_length(plan_of()) == 512


def test_small_sets_are_taken_whole_and_the_longest_rows_always():
    few = rows("a", 20)
    assert sampled(few) == few
    import dataclasses

    from mcit.core.types import Turn

    many = rows("a", 500)
    many[137] = dataclasses.replace(many[137], turns=(Turn("user", "q" * 900), Turn("assistant", "a")))
    assert many[137] in sampled(many) and len(sampled(many)) == 32 and sampled(many) == sampled(many)


def test_a_layer_that_the_model_does_not_have_is_refused_before_weights_load():
    with pytest.raises(PlanError, match=r"methods\[0\] .*DeepLayer.*needs hidden:9, but there is no layer 9") as caught:
        plan_of(defaults={"methods": [{"name": f"{__name__}:DeepLayer"}]})
    assert "the decoder has 2 blocks" in str(caught.value)


class DeepLayer(Method):
    name = "deep"
    claims = Claims(needs=frozenset({"hidden:9"}))


def test_head_of_a_tied_model_cannot_be_trained_apart():
    with pytest.raises(PlanError, match="no 'head' parameters"):
        plan = plan_of()
        model = skeleton(plan)
        del model.lm_head
        stage = plan_of(defaults={"adapter": {"kind": "none", "also_train": ["head"]}}).stages[0]
        trained_parameters(model, stage)


def test_sizes_of_training_rows_are_kept_from_the_check():
    plan = plan_of()
    sizes = train_sizes(plan, plan.tasks[0])
    encoder = make_encoder(plan)
    real = [encoder.encode(row) for row in sampled(list(DataFolder.open(plan.tasks[0].folder).rows("train")))]
    assert [s.positions for s in sizes] == [len(r.input_ids_T) for r in real]
    assert [s.supervised for s in sizes] == [int((r.labels_T != -100).sum()) for r in real]
    assert sizes[0].pixels == {"pixel_values": ((1, 3, 32, 32), torch.float32)}


def test_the_run_takes_the_encoder_of_its_plan_until_the_models_files_change(tmp_path):
    import dataclasses
    import shutil

    plan = plan_of()
    assert make_encoder(plan) is make_encoder(plan)
    copy = dataclasses.replace(plan, model_path=tmp_path / "copy")
    shutil.copytree(plan.model_path, copy.model_path)
    first = make_encoder(copy)
    (copy.model_path / "chat_template.jinja").touch()
    assert first is not make_encoder(copy)
