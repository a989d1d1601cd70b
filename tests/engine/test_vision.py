"""Kept features: the model's own outputs, equal bytes whatever is kept already, and nothing where a picture is not alone."""

import contextlib
import gc
import weakref

import pytest
import torch

from mcit.core.files import canonical_json
from mcit.core.paths import cache_dir
from mcit.core.profile import profiled
from mcit.core.schema import OptimConfig
from mcit.engine import linears
from mcit.engine.base import EngineSpec
from mcit.engine.features import FOLDER
from mcit.engine.gated import gated
from mcit.engine.plain import PlainEngine
from mcit.engine.vision import Features, identity, keep_features, run_tower
from tests.fakes.models import adapted, tiny_model
from tests.fakes.packs import questions
from tests.fakes.toy import toy_batch

LIMIT = 1 << 20


@pytest.fixture(autouse=True)
def _own_features(tmp_path, monkeypatch, cache):
    """The tiny model of the session, and a folder of features for each test."""
    (tmp_path / "models").symlink_to(cache / "models")
    tiny_model()
    monkeypatch.setenv("MCIT_CACHE", str(tmp_path))


def files():
    return sorted((cache_dir() / FOLDER).glob("*/*.safetensors"))


def with_cache(limit=LIMIT, told=lambda line: None, **kwargs):
    """The tiny model, and what stands for its tower's forward."""
    model = tiny_model(**kwargs)
    keep_features(model.model.vision_tower, limit, told=told)
    return model, model.model.vision_tower.forward


def engine_of(model, *, packs):
    engine = PlainEngine(
        model, EngineSpec(units=adapted(model), optim=OptimConfig(lr=1e-2), total_steps=9, where="test")
    )
    if packs:
        engine.use_packs(questions(model, [2, 2]))
    return engine


def trained(engine, steps=3):
    """Trained tensors after some steps over pictures that come again."""
    for step in range(steps):
        batch = questions(engine.model, [2, 2], seed=step % 2)
        out = engine.forward(batch)
        engine.backward(out.nll_N.mean(), batch)
        engine.step()
    return {name: p.detach().clone() for name, p in engine.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("packs", [True, False])
def test_a_run_has_the_same_bytes_with_an_empty_a_half_full_and_a_full_cache(packs):
    plain = trained(engine_of(tiny_model(), packs=packs))
    model, tower = with_cache()
    first = trained(engine_of(model, packs=packs))
    assert tower.computed and len(files()) == tower.computed
    for file in files()[::2]:
        file.unlink()
    half, _ = with_cache()
    second = trained(engine_of(half, packs=packs))
    model, tower = with_cache()
    third = trained(engine_of(model, packs=packs))
    assert tower.computed == 0 and tower.found
    assert all(torch.equal(first[name], second[name]) and torch.equal(first[name], third[name]) for name in first)
    for name, tensor in plain.items():
        assert (first[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


@contextlib.contextmanager
def hurried(model):
    """As a model is while answers are made."""
    with linears.quick(model), gated(model):
        yield


@pytest.mark.parametrize("first, then", [(hurried, contextlib.nullcontext), (contextlib.nullcontext, hurried)])
def test_bits_do_not_tell_who_asked_first(first, then, tmp_path, monkeypatch):
    """Linears of the plain engine and of answers are other ones than those of base passes and ZeRO; here visibly so."""
    monkeypatch.setattr(linears, "pays", lambda: True)
    monkeypatch.setattr(linears, "_onednn", lambda x, W, b: 1.001 * torch.nn.functional.linear(x, W, b))
    pixels = toy_batch(tiny_model()).pixels

    def asked(way):
        model, tower = with_cache()
        with torch.no_grad(), way(model):
            return model.model.get_image_features(**pixels).pooler_output[0], tower

    alone, tower = asked(then)
    assert tower.computed == 4
    for file in files():
        file.unlink()
    asked(first)
    kept, tower = asked(then)
    assert tower.computed == 0 and torch.equal(kept, alone)


def test_settings_of_the_process_name_a_feature(monkeypatch):
    model, tower = with_cache()
    pixels = toy_batch(model, rows=1).pixels
    with torch.no_grad():
        for enabled, pays in ((True, True), (True, False), (False, False)):
            monkeypatch.setattr(linears, "pays", lambda pays=pays: pays)
            monkeypatch.setattr(torch.backends.mkldnn, "enabled", enabled)
            model.model.get_image_features(**pixels)
    assert tower.computed == 3 and len(files()) == 3
    assert not [m for m in model.model.vision_tower.modules() if type(m) is torch.nn.Linear and "forward" in vars(m)]


def test_a_picture_that_is_shown_twice_is_computed_once():
    model, tower = with_cache()
    with torch.no_grad():
        batch = questions(model, [3, 1])
        model(batch.input_ids_BT, **batch.pixels)
        assert tower.computed == 2 and len(files()) == 2, "one part of each: the model reads no other layer"
        model(batch.input_ids_BT, **batch.pixels)
    assert tower.computed == 2 and tower.found == 2


def test_features_are_those_of_the_tower():
    model, tower = with_cache()
    pixels = toy_batch(model).pixels["pixel_values"]
    with torch.no_grad():
        own = run_tower(model.model.vision_tower, pixels)
        for _ in range(2):
            kept = model.model.vision_tower(pixels)
            assert isinstance(kept, Features)
            for got, want in (
                (kept.last_hidden_state, own.last_hidden_state),
                (kept.pooler_output, own.pooler_output),
                (kept[0], own[0]),
                (kept["pooler_output"], own["pooler_output"]),
            ):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
            assert kept.attentions is None
            with pytest.raises(AttributeError):
                kept._nothing  # noqa: B018


def test_layers_are_a_sequence():
    parts = {f"hidden_states.{k}": torch.tensor(k) for k in range(4)}
    layers = Features(parts, parts.__getitem__).hidden_states
    assert len(layers) == 4 and int(layers[-2]) == 2
    assert [int(x) for x in layers[1:3]] == [1, 2] and [int(x) for x in layers] == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        layers[4]


def test_other_weights_are_another_tower():
    model, tower = with_cache()
    pixels = toy_batch(model).pixels
    with torch.no_grad():
        before = model.model.get_image_features(**pixels).pooler_output[0].clone()
        weight = next(p for n, p in model.named_parameters() if "vision_tower" in n and p.ndim == 2)
        weight.mul_(1.5)
        changed = model.model.get_image_features(**pixels).pooler_output[0]
        assert not torch.equal(before, changed)
        weight.data = weight.data / 1.5 * 1.5 + 0.1
        assert not torch.equal(changed, model.model.get_image_features(**pixels).pooler_output[0])
    assert len({file.parent for file in files()}) == 3


def test_a_tower_that_trains_runs_as_it_is():
    told = []
    model, tower = with_cache(told=told.append)
    engine_of(model, packs=False)
    for parameter in model.model.vision_tower.parameters():
        parameter.requires_grad_(True)
    batch = toy_batch(model)
    for _ in range(2):
        model(batch.input_ids_BT, **batch.pixels).logits.sum().backward()
    assert next(p for p in model.model.vision_tower.parameters() if p.ndim > 1).grad is not None
    assert told == ["the vision cache is not used: the tower trains"] and not files()


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda tower, pixels: tower(pixels, sizes=torch.ones(2)), "more than pictures (sizes)"),
        (lambda tower, pixels: tower(pixels.flatten(2)), "does not take pictures one beside the other"),
        (lambda tower, pixels: tower.train()(pixels), "training mode"),
        (lambda tower, pixels: tower(pixels.clone().requires_grad_()), "gradients of pictures"),
    ],
    ids=["sizes", "axes", "training", "gradients"],
)
def test_a_call_that_cannot_be_kept_runs_as_it_is(spoil, reason):
    told = []
    tower = Plain()
    keep_features(tower, LIMIT, told=told.append)
    spoil(tower.eval(), torch.ones(2, 3, 4, 4))
    assert len(told) == 1 and reason in told[0] and not files()


class Plain(torch.nn.Module):
    """A tower whose features may depend on the pictures beside it."""

    def __init__(self, mixing=0.0, more=lambda x: {}):
        super().__init__()
        self.scale, self.mixing = torch.nn.Parameter(torch.ones(1), requires_grad=False), mixing
        self.more = more

    def forward(self, pixel_values, sizes=None):
        x = pixel_values.flatten(1) * self.scale
        return {"last_hidden_state": x + self.mixing * x.mean(0), **self.more(x)}


@pytest.mark.parametrize("blank", [False, True])
def test_a_tower_that_mixes_pictures_is_found_out(blank):
    told, tower = [], Plain(0.5).eval()
    keep_features(tower, LIMIT, told=told.append)
    pixels = torch.ones(2, 3, 4, 4) if blank else torch.randn(2, 3, 4, 4)
    assert torch.equal(tower(pixels)["last_hidden_state"], run_tower(tower, pixels)["last_hidden_state"])
    assert "depends on the pictures beside it" in told[0] and not files()


@pytest.mark.parametrize(
    "more, reason",
    [
        (lambda x: {"loss": x.mean()}, "the tower's loss is one number for all pictures"),
        (lambda x: {"mask": x > x[:1]}, "depends on the pictures beside it"),
        (lambda x: {"mask": x > 0}, ""),
        (lambda x: {"odd": x.new_zeros(len(x), 0)}, "RuntimeError: "),
    ],
    ids=["number", "mixed truths", "truths", "nothing"],
)
def test_outputs_that_are_no_features_are_a_reason(more, reason):
    told, tower = [], Plain(more=more).eval()
    keep_features(tower, LIMIT, told=told.append)
    pixels = torch.randn(2, 3, 4, 4)
    assert torch.equal(tower(pixels)["last_hidden_state"], pixels.flatten(1))
    assert len(told) == bool(reason) and all(reason in line for line in told)


def test_what_is_computed_lies_in_memory_as_what_is_read():
    tower = Plain(more=lambda x: {"turned": x.view(len(x), 6, 8).mT}).eval()
    keep_features(tower, LIMIT)
    pixels = torch.randn(1, 3, 4, 4)
    fresh, read = (tower(pixels)["turned"] for _ in range(2))
    assert fresh.stride() == read.stride() and torch.equal(fresh, read)


def test_time_of_features_is_visions():
    model, _ = with_cache()
    with torch.no_grad(), profiled() as profile, profile.part("language forward"):
        model.model.vision_tower(toy_batch(model).pixels["pixel_values"]).last_hidden_state  # noqa: B018
    assert profile.json()[0]["seconds"]["vision"] > 0


def test_the_kind_of_processor_names_a_tower(tmp_path, monkeypatch):
    """By what the system says of it; `platform.processor` is empty on most."""
    cpus, seen = tmp_path / "cpuinfo", set()
    monkeypatch.setattr(linears, "_CPUS", cpus)
    for said in ("vendor_id : A\nmodel\t: 1\n", "vendor_id : A\nmodel\t: 2\n", "vendor_id : A\nmodel : 1\nflags : f\n"):
        cpus.write_text(f"processor : 0\n{said}cpu MHz : {len(seen)}\n\nprocessor : 1\n")
        seen.add(canonical_json(identity(Plain())))
    assert len(seen) == 3
    cpus.write_text("processor : 0\nvendor_id : A\nmodel : 1\ncpu MHz : 99\n")
    assert canonical_json(identity(Plain())) in seen
    cpus.unlink()
    assert identity(Plain())["machine"]


def test_a_full_cache_is_told_once_and_changes_nothing():
    told = []
    model, tower = with_cache(limit=100, told=told.append)
    batch = toy_batch(model)
    with torch.no_grad():
        logits = [model(batch.input_ids_BT, **batch.pixels).logits for _ in range(2)]
    assert torch.equal(*logits) and told == ["the vision cache takes no more pictures: it is full"]
    assert tower.computed == 8


def test_lower_precision_is_kept_apart():
    model, tower = with_cache()
    pixels = toy_batch(model, rows=1).pixels
    for enabled in (True, False):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            model.model.get_image_features(**pixels)
    assert tower.computed == 2 and len(files()) == 2


def test_a_model_is_freed_when_nobody_has_it():
    model, _ = with_cache()
    seen = weakref.ref(model.model.vision_tower)
    with torch.no_grad():
        model.model.get_image_features(**toy_batch(model).pixels)
    gc.disable()
    try:
        del model
        freed = seen() is None
    finally:
        gc.enable()
    assert freed or not _freed_without_cache()


def _freed_without_cache():
    model = tiny_model()
    seen = weakref.ref(model.model.vision_tower)
    del model
    return seen() is None
