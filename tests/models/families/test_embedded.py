"""The conversion with random weights and a tiny language model; tests marked `embedded` build the real one (106 MB)."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, LlamaConfig, PreTrainedTokenizerFast

from mcit.core.schema import BaseConfig
from mcit.models.families import embedded
from mcit.models.families.embedded_llava import (
    STAGES,
    EmbeddedLlavaConfig,
    EmbeddedLlavaForConditionalGeneration,
    Lite0VisionConfig,
    Lite0VisionModel,
)

HIDDEN = 32


# ---- small stand-ins ------------------------------------------------------------------------------------------------
def package_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """A random state dict with the names and shapes of the package's .pth."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state: dict[str, torch.Tensor] = {}

    def add(conv: str, norm: str, out: int, inner: int, kernel: int) -> None:
        state[f"{conv}.weight"] = random(out, inner, kernel, kernel, scale=(inner * kernel * kernel) ** -0.5)
        state[f"{norm}.weight"] = 1 + random(out, scale=0.2)
        state[f"{norm}.bias"] = random(out, scale=0.2)
        state[f"{norm}.running_mean"] = random(out, scale=0.2)
        state[f"{norm}.running_var"] = 0.5 + random(out).abs()

    add("_conv_stem", "_bn0", 32, 3, 3)
    number, inner = 0, 32
    for expand, kernel, _, outer, repeats in STAGES:
        for _ in range(repeats):
            block, wide = f"_blocks.{number}", inner * expand
            if expand > 1:
                add(f"{block}._expand_conv", f"{block}._bn0", wide, inner, 1)
            add(f"{block}._depthwise_conv", f"{block}._bn1", wide, 1, kernel)
            add(f"{block}._project_conv", f"{block}._bn2", outer, wide, 1)
            inner, number = outer, number + 1
    return state


def unfolded(state: dict[str, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The published network written out with its batch norms: maps of stride 16 (112 channels) and 32 (320)."""

    def step(x: torch.Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight = state[f"{conv}.weight"]
        y = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(y, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"], False, 0.0, 1e-3)

    x = F.relu6(step(x, "_conv_stem", "_bn0", 2))
    number, maps = 0, []
    for expand, _, stride, _, repeats in STAGES:
        for i in range(repeats):
            block, y = f"_blocks.{number}", x
            if expand > 1:
                y = F.relu6(step(y, f"{block}._expand_conv", f"{block}._bn0"))
            y = step(y, f"{block}._depthwise_conv", f"{block}._bn1", stride if i == 0 else 1, y.shape[1])
            y = step(F.relu6(y), f"{block}._project_conv", f"{block}._bn2")
            x = x + y if i else y
            number += 1
        maps.append(x)
    return maps[4], maps[6]


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the special ones of the language model."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = [embedded.IMAGE, embedded.PAD, embedded.END]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*specials, *letters])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=embedded.END,
        pad_token=embedded.PAD,
        extra_special_tokens={"image_token": embedded.IMAGE},
    )


def tiny_model(seed: int = 0) -> EmbeddedLlavaForConditionalGeneration:
    """The real tower with random weights before two small layers."""
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=1,
    )
    config = EmbeddedLlavaConfig(
        vision_config=Lite0VisionConfig(),
        text_config=text,
        image_token_index=0,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = EmbeddedLlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.model.vision_tower.feature_shift.normal_()
    return model


def picture(seed: int = 0, *, side: int = 128) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def inputs_of(processor, *questions: str):
    processor.tokenizer.padding_side = "left"
    texts = [prompt(processor, q) for q in questions]
    pictures = [[picture(i)] for i in range(len(questions))]
    return processor(text=texts, images=pictures, padding=True, return_tensors="pt")


def prompt(processor, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


# ---- tower ----------------------------------------------------------------------------------------------------------
def test_folded_tower_equals_the_one_with_batch_norms():
    state = package_state()
    tower = Lite0VisionModel(Lite0VisionConfig()).eval()
    missing, unexpected = tower.load_state_dict(embedded.fold_tower(state), strict=False)
    assert sorted(missing) == ["feature_scale", "feature_shift"]
    assert not unexpected
    x = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        middle, last = unfolded(state, x)
        features = tower.features(x)
    assert features.shape == (2, 4, 4, 768)
    scale = max(middle.abs().max(), last.abs().max()).item()
    assert (features[..., 448:].permute(0, 3, 1, 2) - last).abs().max() < 1e-5 * scale
    # channel c of the stride-16 map, row offset i, column offset j of a 2 x 2 cell is feature 4 c + 2 i + j
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        got = features[..., 2 * i + j : 448 : 4].permute(0, 3, 1, 2)
        assert (got - middle[:, :, i::2, j::2]).abs().max() < 1e-5 * scale


def test_tokens_are_standardised_and_end_with_row_and_column():
    tower = Lite0VisionModel(Lite0VisionConfig()).eval()
    with torch.no_grad():
        tower.feature_scale.fill_(2.0)
        tower.feature_shift.fill_(3.0)
        x = torch.randn(1, 3, 128, 128)
        out = tower(x, output_hidden_states=True, return_dict=True)
        tokens = out.last_hidden_state
        assert torch.allclose(tokens[..., :768], tower.features(x).flatten(1, 2) * 2 + 3)
    assert tokens.shape == (1, 16, tower.config.hidden_size) == (1, 16, 776)
    for cell in range(16):
        place = tokens[0, cell, 768:]
        assert place[:4].argmax() == cell // 4 and place[4:].argmax() == cell % 4
        assert place.sum() == 2
    assert out.hidden_states[-1] is tokens


def test_tower_has_no_state_that_training_could_move_unseen():
    tower = embedded.empty_tower()
    assert not list(tower.buffers())
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(tower.eval()(x).last_hidden_state, tower.train()(x).last_hidden_state)


# ---- model ----------------------------------------------------------------------------------------------------------
def test_saved_folder_gives_the_same_logits_and_answers(tmp_path):
    model, processor = tiny_model(), embedded.make_processor(tokenizer())
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    inputs = inputs_of(processor, "What is it?", "And this one here?")
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)
    assert torch.equal(model.generate(**inputs, max_new_tokens=4), again.generate(**inputs, max_new_tokens=4))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert (tmp_path / "embedded_llava.py").is_file()
    assert again.lm_head.weight is again.model.language_model.embed_tokens.weight


PLAIN = """
import sys
sys.modules["mcit"] = None  # any import of it fails
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, picture = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
inputs = processor(text=[text], images=[[Image.open(picture)]], return_tensors="pt")
with torch.no_grad():
    print(repr(model(**inputs).logits.double().sum().item()))
"""


def test_folder_loads_in_plain_transformers_with_the_file_it_carries(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, processor = tiny_model(), embedded.make_processor(tokenizer())
    folder = tmp_path / "folder"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    picture(0).save(tmp_path / "p.png")
    command = [sys.executable, "-c", PLAIN, str(folder), str(tmp_path / "p.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        expected = model(**inputs_of(processor, "What is it?")).logits.double().sum().item()
    assert float(done.stdout.strip().splitlines()[-1]) == pytest.approx(expected, rel=1e-6)


def test_gradients_are_the_same_with_checkpointing():
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model, processor = tiny_model(), embedded.make_processor(tokenizer())
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        inputs = inputs_of(processor, "What is it?")
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        projector = [p.grad for p in model.model.multi_modal_projector.parameters()]
        layer = [p.grad for p in model.model.language_model.layers[0].parameters()]
        return [g for g in projector + layer if g is not None]

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain) == len(checkpointed) > 8
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, checkpointed, strict=True))


def test_lora_pairs_are_added_to_the_weights():
    model = tiny_model()
    name = "model.language_model.layers.1.mlp.up_proj"
    before = model.get_submodule(name).weight.clone()
    a, b = torch.randn(2, HIDDEN), torch.randn(64, 2)
    embedded.merge_lora(model, {f"{name}.A": a, f"{name}.B": b})
    assert torch.equal(model.get_submodule(name).weight, before + b @ a)


# ---- processor and template -----------------------------------------------------------------------------------------
def test_pixels_are_scaled_as_the_tower_was_trained():
    processor = embedded.make_processor(tokenizer())
    grey = Image.fromarray(np.full((128, 128, 3), (127, 255, 0), np.uint8))
    pixels = processor.image_processor(images=[grey], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 128, 128)
    assert torch.allclose(pixels[0, :, 5, 7], torch.tensor([0.0, 1.0, -127 / 128]), atol=1e-6)


@pytest.mark.parametrize("side", [64, 128, 300])
def test_one_image_is_sixteen_tokens_whatever_its_size(side):
    processor = embedded.make_processor(tokenizer())
    inputs = processor(text=[prompt(processor, "Hm?")], images=[[picture(side=side)]], return_tensors="pt")
    assert (inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids(embedded.IMAGE)).sum() == 16
    assert inputs["pixel_values"].shape == (1, 3, 128, 128)


def user(*parts: str) -> dict:
    kinds = [{"type": "image"} if p == "<image>" else {"type": "text", "text": p} for p in parts]
    return {"role": "user", "content": kinds}


def says(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


ROWS = {
    "one image": ([user("<image>", "Q?"), says("A")], "<image>\nQ?\nA<|im_end|>"),
    "two turns": (
        [user("<image>", "Q?"), says("A"), user("R?"), says("B")],
        "<image>\nQ?\nA<|im_end|>\nR?\nB<|im_end|>",
    ),
    "text only": ([user("Q?"), says("A")], "Q?\nA<|im_end|>"),
    "two images": ([user("<image>", "<image>", "Q?"), says("A")], "<image>\n<image>\nQ?\nA<|im_end|>"),
    "strings": ([{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A"}], "Q?\nA<|im_end|>"),
}


@pytest.mark.parametrize("name", ROWS)
def test_template_text(name):
    messages, expected = ROWS[name]
    assert embedded.make_processor(tokenizer()).apply_chat_template(messages) == expected


@pytest.mark.parametrize("name", ROWS)
def test_generation_prompt_is_a_token_prefix_and_markers_cover_answer_and_end(name):
    processor = embedded.make_processor(tokenizer())
    messages, _ = ROWS[name]
    tokens = processor.tokenizer
    whole = tokens(processor.apply_chat_template(messages), add_special_tokens=False)["input_ids"]
    for turn in range(0, len(messages), 2):
        lead = processor.apply_chat_template(messages[: turn + 1], add_generation_prompt=True)
        ids = tokens(lead, add_special_tokens=False)["input_ids"]
        assert whole[: len(ids)] == ids
        answer = messages[turn + 1]["content"]
        answer = answer if isinstance(answer, str) else answer[0]["text"]
        assert tokens.decode(whole[len(ids) :]).startswith(answer + embedded.END)
    encoded = tokens.apply_chat_template(
        messages, chat_template=embedded.TEMPLATE, return_assistant_tokens_mask=True, return_dict=True
    )
    marked = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    answers = [m["content"] if isinstance(m["content"], str) else m["content"][0]["text"] for m in messages[1::2]]
    assert tokens.decode(marked) == "".join(a + embedded.END for a in answers)


# ---- the real one ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real_folder():
    return embedded.materialize(BaseConfig(family="embedded"), announce=print)


@pytest.mark.embedded
def test_real_model_is_built_once_and_then_needs_no_network(real_folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pip was called")

    monkeypatch.setattr("mcit.core.fetch.subprocess.run", refuse)
    assert embedded.pending(BaseConfig(family="embedded")) is None
    assert embedded.materialize(BaseConfig(family="embedded")) == real_folder
    assert {"config.json", "model.safetensors", "tokenizer.json", "embedded_llava.py", "generation_config.json"} <= {
        p.name for p in real_folder.iterdir()
    }


@pytest.mark.embedded
def test_real_language_model_knows_something(real_folder):
    """Greedy text continuation: wrong rotary order, scales or token order would give noise."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(real_folder)
    model = AutoModelForImageTextToText.from_pretrained(real_folder, dtype=torch.float32).eval()
    ids = words("The capital of France is", return_tensors="pt")["input_ids"]
    made = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert "Paris" in words.decode(made[0])
    assert words.eos_token == embedded.END
    assert words.convert_tokens_to_ids(embedded.IMAGE) == model.config.image_token_id
    assert len(words) == model.config.text_config.vocab_size == 49152
    text = "Ein Ärgernis: 1,234 naïve   spaces\n\tand 🙂."
    assert words.decode(words(text)["input_ids"]) == text


@pytest.mark.embedded
def test_real_model_answers_depend_on_the_picture(real_folder):
    """Two pictures, one question: a projector that is not wired in would give equal logits."""
    from mcit.models.load import load_base, load_processor

    model, processor = load_base(real_folder), load_processor(real_folder)
    inputs = inputs_of(processor, "What is it?", "What is it?")
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
