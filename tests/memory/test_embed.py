"""Vectors by the tiny model and by a folder of a sentence encoder."""

import json
import shutil

import numpy as np
import pytest
import torch

from mcit.core.errors import ConfigError, DataError
from mcit.core.interfaces import Silent
from mcit.memory.embed import FolderEmbedder, ModelEmbedder, model_identity
from mcit.train.standalone import Standalone, model_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        one = Standalone(model_config("tiny", ["base.dtype=fp32"]), reporter=Silent())
        return one.model, one.encoder


def by_model(tiny, layer="0"):
    return ModelEmbedder(*tiny, digest="abc", device=CPU, layer=layer)


def test_the_mean_of_what_enters_the_first_block_without_the_first_token(tiny):
    model, encoder = tiny
    text = "what is red here"
    ids = encoder.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 2
    want = model.get_input_embeddings().weight[ids[1:]].float().mean(0).detach().numpy()
    assert np.allclose(by_model(tiny)([text])[0], want, atol=1e-6)


@pytest.mark.parametrize("layer", ["0", "0.5", "last"])
def test_a_text_has_the_same_vector_alone_and_in_company(tiny, layer):
    embed = by_model(tiny, layer)
    texts = ["a", "what is red here", "what is it and why is it so " * 4]
    together = embed(texts)
    assert together.shape == (3, embed.dimension) and np.isfinite(together).all()
    for text, row in zip(texts, together, strict=True):
        assert np.allclose(embed([text])[0], row, atol=1e-5)


def test_the_model_is_left_as_it_was(tiny):
    model, _ = tiny
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    by_model(tiny, "last")(["what is red"])
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()


def test_identity_is_of_weights_and_layer(tiny):
    assert by_model(tiny).identity == model_identity("abc") != model_identity("abd")
    assert by_model(tiny, "last").identity == model_identity("abc", layer="last") != model_identity("abc")


def test_a_model_without_such_states_and_a_text_without_a_token_are_refused(tiny):
    for wrong in (
        lambda: ModelEmbedder(torch.nn.Linear(2, 2), tiny[1], digest="", device=CPU),
        lambda: by_model(tiny, "99"),
    ):
        with pytest.raises(ConfigError, match="no hidden states of its language model") as refused:
            wrong()
        assert refused.value.where == "--memory" and "--encoder" in refused.value.fix
    with pytest.raises(DataError, match="no token"):
        by_model(tiny)(["what", ""])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    from transformers import BertConfig, BertModel

    path = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny[1].processor.tokenizer
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **sizes)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_folder_pools_as_it_says(folder):
    mean = FolderEmbedder(folder, device=CPU)
    texts = ["what is red here", "a"]
    rows = mean(texts)
    assert rows.shape == (2, 16) and np.allclose(mean(texts[:1])[0], rows[0], atol=1e-5)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    first = FolderEmbedder(folder, device=CPU)
    assert not np.allclose(first(texts), rows) and first.identity != mean.identity


def test_texts_are_cut_to_the_positions_of_an_encoder_whose_tokenizer_knows_no_limit(tmp_path, folder, tiny):
    """The tiny model's tokenizer names none; what is beyond the cut has no influence on a vector."""
    from transformers import BertConfig, BertModel

    shutil.copytree(folder, tmp_path / "short", ignore=shutil.ignore_patterns("1_Pooling"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(
        vocab_size=len(tiny[1].processor.tokenizer), pad_token_id=0, max_position_embeddings=32, **sizes
    )
    BertModel(config).save_pretrained(tmp_path / "short")
    embed = FolderEmbedder(tmp_path / "short", device=CPU)
    rows = embed(["what is red " * 40, "what is red " * 40 + "or blue"])
    assert rows.shape == (2, 16) and np.array_equal(rows[0], rows[1])


def test_what_is_no_folder_of_an_encoder_is_refused(tmp_path, folder):
    (tmp_path / "bare").mkdir()
    (tmp_path / "pickled").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "pickled" / name).write_bytes((folder / name).read_bytes())
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    for name in ("none", "bare", "pickled"):
        with pytest.raises(ConfigError) as refused:
            FolderEmbedder(tmp_path / name, device=CPU)
        assert "--encoder" in refused.value.where and "safetensors" in refused.value.fix


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "1_Pooling/config.json"])
def test_a_damaged_file_of_an_encoder_is_named(tmp_path, folder, name):
    damaged = tmp_path / "encoder"
    shutil.copytree(folder, damaged)
    (damaged / "1_Pooling").mkdir(exist_ok=True)
    file = damaged / name
    file.write_bytes(file.read_bytes()[:-40] if name == "model.safetensors" else b'{"a": [')
    with pytest.raises(ConfigError) as refused:
        FolderEmbedder(damaged, device=CPU)
    assert str(damaged) in refused.value.where and refused.value.fix
