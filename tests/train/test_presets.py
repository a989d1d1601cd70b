"""The papers' presets plan on the real shapes of the papers' base models, and absent data is one message."""

import json

import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor

from mcit.core.config import load_yaml
from mcit.core.errors import DataError
from mcit.core.paths import shipped
from mcit.data.recipe import find_recipe
from mcit.models.families.tiny import TEMPLATE, byte_tokenizer
from mcit.plan.plan import make_plan, read_config
from tests.models.test_text import TEMPLATE as LLAMA_TEMPLATE

LLAMA_7B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
)


@pytest.fixture(scope="module")
def llava_7b(tmp_path_factory):
    """Config and processor files of LLaVA-1.5-7B's shape, without weights; a byte tokenizer stands for Llama's."""
    home = tmp_path_factory.mktemp("llava-7b")
    tokenizer = byte_tokenizer()
    LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        text_config=LLAMA_7B,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        architectures=["LlavaForConditionalGeneration"],
    ).save_pretrained(home)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def llama_7b(tmp_path_factory):
    home = tmp_path_factory.mktemp("llama-7b")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = LLAMA_TEMPLATE
    tokenizer.save_pretrained(home)
    LLAMA_7B.save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory):
    """Llama-3.1-8B's shape: grouped-query attention, 128,256 words."""
    home = tmp_path_factory.mktemp("llama-8b")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = LLAMA_TEMPLATE
    tokenizer.save_pretrained(home)
    LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
    ).save_pretrained(home)
    return home


def recipes_in(preset):
    data = load_yaml(shipped("configs") / f"{preset}.yaml")
    named = [name for s in data["stages"] for key in ("recipe", "forget") for name in _list(s.get(key, []))]
    named += [m["recipe"] for m in data["defaults"].get("methods", []) if "recipe" in m]
    return list(dict.fromkeys(named))


def _list(value):
    return [value] if isinstance(value, str) else list(value)


def write_data(root, preset, *, rows=3):
    """Rows in the files that the recipes of a preset name: the schema of the originals, made-up content."""
    for recipe in recipes_in(preset):
        config = load_yaml(find_recipe(recipe))
        home = root / config.get("data", "")
        for source in config["sources"]:
            if source["kind"] != "llava":
                continue
            path = home / source["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = sum(map(ord, recipe + source["split"]))
            made = [json.dumps(row(source, home, i, seed)) for i in range(rows)]
            path.write_text("\n".join(made) if path.suffix == ".jsonl" else f"[{', '.join(made)}]")
            if source.get("answers"):
                ten = [{"question_id": json.loads(text)["question_id"], "answers": ["A"] * 10} for text in made]
                (home / source["answers"]).parent.mkdir(parents=True, exist_ok=True)
                (home / source["answers"]).write_text(json.dumps({"data": ten}))


def row(source, home, i, seed):
    name = f"{seed}-{i}"
    if source["path"] == "first-1000.jsonl":
        return {"id": name, "text": f"A general text, number {name}."}
    if source.get("fields"):
        question, answer = source["fields"]
        return {question: f"Question {name}?", answer: f"{i}"}
    images = home / source.get("images", ".")
    images.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (seed % 256, i * 40, 9)).save(images / f"{name}.png")
    if source["split"] == "test":
        answer = "[0.1, 0.2, 0.3, 0.4]" if "Grounding" in source["path"] else "A"
        return {
            "question_id": name, "image": f"{name}.png", "text": f"Q {name}?\nA. x\nB. y", "answer": answer,
            "answer_bbox": "[0.1, 0.2, 0.3, 0.4]", "size": [16, 16],
        }  # fmt: skip
    answer = "[0.1, 0.2, 0.3, 0.4]" if source.get("style") == "box" else "A"
    turns = [{"from": "human", "value": f"<image>\nQ {name}?\nA. x\nB. y"}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": f"{name}.png", "conversations": turns}


LLAVA = ("sefe-coin", "coin", "coin-moe", "ucit", "mllm-dcl", "mllm-acl", "gs-lora-forget")
PRESETS = {**dict.fromkeys(LLAVA, "llava_7b"), "hft": "llama_7b", "gere": "llama_8b"}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_preset_plans_without_problems(preset, tmp_path, monkeypatch, request):
    monkeypatch.setenv("MCIT_DATA", str(tmp_path))
    write_data(tmp_path, preset)
    config, _ = read_config(preset, [f"base.model={request.getfixturevalue(PRESETS[preset])}"])
    plan = make_plan(config)
    assert len(plan.stages) == len(config.stages) and all(s.steps for s in plan.stages)
    methods = {"sefe-coin": {"reglora"}, "hft": {"hft"}, "gere": {"gere"}}
    methods["gs-lora-forget"] = {"bounded_forget", "group_sparse", "refusal"}
    assert {m.name for s in plan.stages for m in s.methods} == methods.get(preset, set())


def test_values_of_the_papers_that_are_no_default():
    """SEFE's DeepSpeed config has no clipping; all three trained with transformers' schedules, which begin at 0."""
    stages = {name: read_config(name)[0].stages for name in PRESETS}
    assert {s.optim.clip for s in stages["sefe-coin"]} == {None}
    for name in ("sefe-coin", "hft", "gere"):
        assert {s.optim.warmup_from for s in stages[name]} == {"zero"}
    recipes = [load_yaml(find_recipe(r)) for r in recipes_in("sefe-coin")]
    assert {r["eval"]["max_new_tokens"] for r in recipes} == {1024}
    scorers = ["choice", "vqa", "name", "gqa", "exact", "grounding", "exact", "ocrvqa"]
    assert [r["eval"]["scorer"] for r in recipes] == scorers


def test_published_sequences_shuffle_rows():
    """Their authors did; the default keeps rows of one picture together, which is another order wherever there are several."""
    for name in ("sefe-coin", "coin", "coin-moe", "coin-refined", "ucit", "mllm-dcl", "mllm-acl"):
        assert {stage.optim.rows_per_image for stage in read_config(name)[0].stages} == {1}, name


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "coin-moe"])
def test_an_absent_data_folder_is_one_message(preset, tmp_path, monkeypatch, request):
    monkeypatch.setenv("MCIT_DATA", str(tmp_path))
    config, _ = read_config(preset, [f"base.model={request.getfixturevalue(PRESETS[preset])}"])
    with pytest.raises(DataError) as caught:
        make_plan(config)
    folders = {load_yaml(find_recipe(name)).get("data") for name in recipes_in(preset)}
    assert len(caught.value.problems) == len(folders)
    for problem in caught.value.problems:
        assert problem.what == "the data folder is absent" and "MCIT_DATA" in problem.fix
        folder = problem.where.rpartition("/")[2]
        assert all(n in problem.where for n in recipes_in(preset) if load_yaml(find_recipe(n)).get("data") == folder)
