"""A model that cannot be given a kind of row is said to be the problem, once."""

import json
import shutil

import pytest

from mcit.core.errors import PlanError
from mcit.data.encode import Encoder
from mcit.models.load import load_processor, model_config, skeleton
from mcit.plan.modelcheck import feature_problem, kind_of, kind_problem, processor_problem
from mcit.plan.plan import make_plan, parse_run
from tests.fakes.families.make import FAMILIES, write
from tests.fakes.families.rows import conversation
from tests.fakes.families.task import recipe
from tests.fakes.processors import make_processor


def test_kinds(tmp_path):
    assert kind_of(conversation(tmp_path, "q", "a")) == (0, 1, False)
    assert kind_of(conversation(tmp_path, "<image>q", "a", "b", "c", "d", "e", images=(0,))) == (1, 2, False)
    assert kind_of(conversation(tmp_path, "<image><image><image>q", "a", images=(0, 1, 2))) == (2, 1, False)


def test_a_problem_names_the_model_and_the_cure():
    encoder = Encoder(make_processor("llava", kind="melting"))
    found = kind_problem(encoder, (0, 1, False), where="base.model: x")
    assert found is not None and found.where == "base.model: x"
    assert "not a token prefix" in found.what and "base.chat_template" in found.fix
    assert kind_problem(Encoder(make_processor("chatml")), (2, 2, True), where="x") is None


def plan_of(folder, tmp_path, **base):
    data = {
        "name": "r",
        "base": {"family": "hf", "model": str(folder), "dtype": "fp32", **base},
        "stages": [{"recipe": recipe(tmp_path / "one", "one", rows=12)}],
    }
    config, problems = parse_run(data)
    assert config is not None, problems
    return make_plan(config)


LOSING = "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'user' %}<image>?{% else %}hidden{% endif %}{% endfor %}"


def test_a_plan_says_it_once_and_another_template_cures_it(tmp_path):
    """Twelve rows of which each would fail; the same folder works with a template from a file."""
    folder = write("llava", tmp_path / "llava")
    good = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(LOSING)
    with pytest.raises(PlanError) as caught:
        plan_of(folder, tmp_path)
    (problem,) = caught.value.problems
    assert problem.where == f"base.model: {folder}" and "every answer word for word" in problem.what
    (tmp_path / "good.jinja").write_text(good)
    assert plan_of(folder, tmp_path, chat_template=str(tmp_path / "good.jinja")).stages[0].rows == 12
    with pytest.raises(PlanError, match="base.chat_template"):
        (tmp_path / "bad.jinja").write_text(LOSING)
        plan_of(folder, tmp_path, chat_template=str(tmp_path / "bad.jinja"))


def test_mllama_is_refused_where_rows_have_unlike_numbers_of_pictures(tmp_path):
    """With one picture each it runs; with text rows among them the plan says why not."""
    folder = write("mllama", tmp_path / "mllama")
    assert plan_of(folder, tmp_path).stages[0].rows == 12
    data = recipe(tmp_path / "two", "two", rows=12, text=3)
    config, _ = parse_run(
        {
            "name": "r",
            "base": {"family": "hf", "model": str(folder), "dtype": "fp32"},
            "stages": [{"recipe": recipe(tmp_path / "one", "one", rows=12)}, {"recipe": data}],
        }
    )
    with pytest.raises(PlanError, match=r"different numbers of pictures \(0, 1\)") as caught:
        make_plan(config)
    assert len(caught.value.problems) == 1 and "equally many pictures" in caught.value.problems[0].fix


def test_another_templates_content_is_part_of_a_runs_identity(tmp_path):
    """The path stays, the text changes: plan.json says so, and a run's restart compares it."""
    from mcit.plan.record import plan_json
    from mcit.runs.identity import identity

    folder, file = write("llava", tmp_path / "llava"), tmp_path / "mine.jinja"
    file.write_text((folder / "chat_template.jinja").read_text())
    plan = plan_of(folder, tmp_path, chat_template=str(file))
    first = plan_json(plan)
    file.write_text(file.read_text().replace("USER", "HUMAN") + " ")
    versions = {"versions": {}}
    changed = {k for k, v in identity(plan_json(plan), versions).items() if v != identity(first, versions)[k]}
    assert changed == {"chat_template_sha256"}
    assert plan_json(plan_of(folder, tmp_path))["chat_template_sha256"] is None


def test_a_template_file_that_is_not_there_is_a_problem_of_the_config(tmp_path):
    from mcit.plan.references import reference_problems

    data = {
        "name": "r",
        "base": {"family": "tiny", "chat_template": "nowhere.jinja"},
        "stages": [{"recipe": "tiny/letter"}],
    }
    (problem,) = reference_problems(parse_run(data)[0]) if parse_run(data)[0] else parse_run(data)[1]
    assert problem.where == "base.chat_template" and "is no file" in problem.what


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_familys_own_processor_fits(name, tmp_path):
    folder = write(name, tmp_path)
    assert processor_problem(Encoder(load_processor(folder)), model_config(folder), where="x") is None


@pytest.mark.parametrize(
    ("giver", "said"), [("llava_next", ""), ("gemma3", "'<image_soft_token>' with id 8, the model's has id 4")]
)
def test_the_processor_of_another_model_is_noticed(giver, said, tmp_path):
    """LLaVA's weights beside another family's processor; LLaVA-NeXT's has the same tokens, so its ids prove nothing."""
    folder, other = write("llava", tmp_path / "llava"), write(giver, tmp_path / giver)
    for path in other.iterdir():
        if path.suffix != ".safetensors" and path.name not in ("config.json", "generation_config.json"):
            shutil.copyfile(path, folder / path.name)
    found = processor_problem(Encoder(load_processor(folder)), model_config(folder), where="x")
    assert found is None if not said else said in found.what and "own processor" in found.fix


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings(tmp_path):
    folder = write("llava", tmp_path)
    processor = load_processor(folder)
    processor.tokenizer.add_tokens(["extra"])
    found = processor_problem(Encoder(processor), model_config(folder), where="x")
    assert found is not None and found.what == "the tokenizer has 422 tokens, the model knows 421"


def test_a_plan_says_that_the_processor_is_another_models(tmp_path):
    folder, other = write("llava", tmp_path / "llava"), write("gemma3", tmp_path / "gemma3")
    for path in other.iterdir():
        if path.suffix != ".safetensors" and path.name not in ("config.json", "generation_config.json"):
            shutil.copyfile(path, folder / path.name)
    with pytest.raises(PlanError, match="token for pictures") as caught:
        plan_of(folder, tmp_path)
    assert len(caught.value.problems) == 1


def test_a_processor_that_fails_in_its_own_code_is_the_models_problem(tmp_path):
    """LLaVA's processor without a patch size divides by None: a common fault of converted folders."""
    folder = write("llava", tmp_path / "llava")
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "patch_size"}))
    with pytest.raises(PlanError, match="TypeError") as caught:
        plan_of(folder, tmp_path)
    (problem,) = caught.value.problems
    assert problem.where == f"base.model: {folder}"


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_familys_pictures_have_as_many_tokens_as_features(name, tmp_path):
    """One picture and two; families that ask for values where there are only shapes say nothing."""
    folder = write(name, tmp_path)
    encoder, model = Encoder(load_processor(folder)), skeleton(folder)
    assert feature_problem(encoder, model, 1, where="x") is feature_problem(encoder, model, 2, where="x") is None


def test_a_processor_that_counts_picture_tokens_otherwise_is_noticed_before_weights_load(tmp_path):
    """16 x 16 pictures in patches of 8 are 4 features; with the start token left in the processor writes 5."""
    folder = write("llava", tmp_path / "llava")
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["vision_feature_select_strategy"] = "full"
    (folder / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(PlanError, match="writes 5 tokens for 1 picture.s., the model makes 4 features") as caught:
        plan_of(folder, tmp_path)
    assert len(caught.value.problems) == 1 and "processor_config.json" in caught.value.problems[0].fix
