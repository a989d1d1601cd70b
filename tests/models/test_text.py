"""A language model without pictures runs through the same loop."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mcit.core.errors import DataError
from mcit.core.types import Row, Turn
from mcit.data.encode import Encoder
from mcit.models.families.tiny import byte_tokenizer
from mcit.models.load import load_base, load_processor, model_config
from mcit.models.text import TextProcessor, auto_class_of
from mcit.plan.plan import make_plan, parse_run
from tests.fakes.bench import TINY, run_plan, tensors_of

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("llama")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(home)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(home)
    return home


def row(*, images=()):
    text = "<image>\nWhat is it?" if images else "What is it?"
    return Row("r1", images, (Turn("user", text), Turn("assistant", "a cup")), "t", "f.json:1")


def test_the_auto_class_follows_the_config(folder):
    assert auto_class_of(model_config(folder)) is AutoModelForCausalLM
    assert isinstance(load_base(folder), LlamaForCausalLM)


def test_rows_without_pictures_are_encoded_and_pictures_refused(folder, tmp_path):
    processor = load_processor(folder)
    assert isinstance(processor, TextProcessor)
    encoder = Encoder(processor)
    shown = encoder.supervised_text(encoder.encode(row()))
    assert shown == [("[INST] What is it? [/INST]", False), (" a cup</s>", True)]
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="takes no pictures"):
        encoder.encode(
            Row(
                **{
                    **{f: getattr(row(), f) for f in Row.__slots__},
                    "images": ("x.png",),
                    "turns": row(images=("x",)).turns,
                    "root": str(tmp_path),
                }
            )
        )


def test_another_template_reaches_the_tokenizer(folder, tmp_path):
    """The wrapper hands rendering to the tokenizer, and saving too."""
    (tmp_path / "mine.jinja").write_text(TEMPLATE.replace("[INST]", "[Q]"))
    found = load_processor(folder, chat_template=str(tmp_path / "mine.jinja"))
    assert Encoder(found).supervised_text(Encoder(found).encode(row()))[0] == ("[Q] What is it? [/INST]", False)
    found.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == found.chat_template


def test_two_stages_of_full_tuning_with_half_of_the_weights_frozen(folder, tmp_path):
    """HFT's own setting: a language model, everything but the frozen half trained."""
    recipe = tmp_path / "text.yaml"
    rows = [
        f'{{"id": "r{i}", "conversations": [{{"from": "human", "value": "What is {i}?"}}, '
        f'{{"from": "gpt", "value": "{i} is a number"}}]}}'
        for i in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    recipe.write_text("name: text\ntask: text\nsources: [{kind: llava, path: rows.jsonl}]\n")
    config, problems = parse_run(
        {
            **TINY,
            "base": {"family": "hf", "model": str(folder), "dtype": "fp32"},
            "defaults": {
                **TINY["defaults"],
                "adapter": {"kind": "none", "also_train": ["embeddings", "head"]},
                "methods": [{"name": "hft"}],
            },
            "stages": [{"recipe": str(recipe), "name": "one"}, {"recipe": str(recipe), "name": "two"}],
        }
    )
    assert config is not None and not problems, problems
    plan = make_plan(config)
    assert tensors_of(run_plan(plan, tmp_path / "a")) == tensors_of(run_plan(plan, tmp_path / "b", stop_at=(2, 2)))
