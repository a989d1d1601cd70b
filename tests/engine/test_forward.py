import torch

from mcit.engine.forward import run_model, set_modes
from tests.fakes.models import adapted, tiny_model
from tests.fakes.toy import toy_batch


def test_only_dropout_of_the_adapter_trains():
    model = tiny_model()
    adapted(model, dropout=0.1)
    set_modes(model, checkpointing=False)
    training = [name for name, module in model.named_modules() if module.training]
    assert training and all("lora_dropout" in name for name in training)


def test_a_wrapper_is_called_in_the_models_place():
    model = tiny_model()
    calls = []
    batch = toy_batch(model, rows=1)
    out = run_model(model, batch, device=torch.device("cpu"), call=lambda **k: calls.append(set(k)) or model(**k))
    again = run_model(model, batch, device=torch.device("cpu"))
    assert calls == [{"input_ids", "attention_mask", "logits_to_keep", "use_cache", "pixel_values"}]
    assert torch.equal(out.nll_N, again.nll_N)
