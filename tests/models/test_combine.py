"""Combinations against formulas written down here, on drawn stages of the tiny model."""

import pytest
import torch

from mcit.core.errors import ConfigError, StateError
from mcit.export.source import open_source
from mcit.models import adapters
from mcit.models.adapterfile import product
from mcit.models.combine import combination, combine, combined_digest, own_effect, place
from tests.fakes.models import tiny_model
from tests.fakes.trained_run import PROJECTOR, make_run


@pytest.fixture(scope="module")
def three(tmp_path_factory, cache):
    """Lineage and files of three merged stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        run, files = make_run(tmp_path_factory.mktemp("three"), ("merge",) * 3)
        return open_source(run, 3).lineage, files


def spec_of(how, **settings):
    return combination(how, committed=[1, 2, 3], **settings)


def made(three, how, **settings):
    return combine(tiny_model(), three[0], spec_of(how, **settings))


def test_linear_adds_the_factors_with_the_root_of_weight_and_scale(three):
    """PEFT: A = sum of sqrt(w s) A, B alike, so that one stage alone is itself and two hold products across."""
    lineage, files = three
    chosen = ((1.0, files[0]), (0.5, files[2]))
    found = made(three, "linear", stages=[1, 3], weights=[1.0, 0.5])
    for module, pair in found.lora.items():
        a = sum((w * f.lora[module].scale) ** 0.5 * f.lora[module].A_RI for w, f in chosen)
        b = sum((w * f.lora[module].scale) ** 0.5 * f.lora[module].B_OR for w, f in chosen)
        torch.testing.assert_close(product(pair), b @ a, rtol=1e-5, atol=1e-6)


def test_tensors_trained_whole_are_combined_as_differences_to_what_their_stage_began_with(three):
    lineage, files = three
    base = {n: p.detach() for n, p in adapters.base_parameters(tiny_model()).items()}
    found = made(three, "linear", stages=[1, 3], weights=[1.0, 0.5])
    assert set(found.full) == set(PROJECTOR)
    for name, value in found.full.items():
        first, third = files[0].full[name] - base[name], files[2].full[name] - files[1].full[name]
        torch.testing.assert_close(value, base[name] + first + 0.5 * third, rtol=1e-5, atol=1e-6)


def test_linear_svd_at_the_full_rank_is_the_exact_sum_of_updates(three):
    lineage, files = three
    found = made(three, "linear_svd", weights=[1.0, -1.0, 2.0], rank=12)
    for module, pair in found.lora.items():
        wanted = sum(w * product(f.lora[module]) for w, f in zip((1.0, -1.0, 2.0), files, strict=True))
        torch.testing.assert_close(product(pair), wanted, rtol=1e-4, atol=1e-5)
    assert {pair.rank for pair in made(three, "linear_svd").lora.values()} == {4}


def ties(tensors, weights, density):
    """Trim to the largest share, elect the sign of the sum, average what agrees."""
    trimmed = []
    for tensor in tensors:
        keep = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
        mask = torch.zeros(tensor.numel()).index_fill(0, keep, 1.0).view_as(tensor)
        trimmed.append(tensor * mask)
    sign = torch.where(sum(trimmed) >= 0, 1.0, -1.0)
    agrees = [torch.sign(t) == sign for t in trimmed]
    total = sum(w * t * m for w, t, m in zip(weights, trimmed, agrees, strict=True))
    return total / sum(m.float() for m in agrees).clamp(min=1)


def test_ties_trims_elects_and_averages(three):
    lineage, files = three
    found = made(three, "ties", density=0.3)
    for module, pair in list(found.lora.items())[:3]:
        pairs = [f.lora[module] for f in files]
        roots = [p.scale**0.5 for p in pairs]
        a, b = (ties([getattr(p, part) for p in pairs], roots, 0.3) for part in ("A_RI", "B_OR"))
        torch.testing.assert_close(product(pair), b @ a, rtol=1e-5, atol=1e-6)
    base = adapters.base_parameters(tiny_model())
    name = PROJECTOR[0]
    before = [base[name].detach(), files[0].full[name], files[1].full[name]]
    changes = [f.full[name] - b for f, b in zip(files, before, strict=True)]
    torch.testing.assert_close(found.full[name] - before[0], ties(changes, [1.0] * 3, 0.3), rtol=1e-4, atol=1e-6)


def test_dare_keeps_a_share_scaled_up_and_depends_on_its_seed_alone(three):
    everything, linear = made(three, "dare", density=1.0), made(three, "linear")
    half, again = made(three, "dare", stages=[1, 2], seed=3), made(three, "dare", stages=[1, 2], seed=3)
    other = made(three, "dare", stages=[1, 2], seed=4)
    for module, pair in linear.lora.items():
        torch.testing.assert_close(product(everything.lora[module]), product(pair))
        assert torch.equal(product(half.lora[module]), product(again.lora[module]))
    assert any(not torch.equal(half.lora[m].A_RI, other.lora[m].A_RI) for m in half.lora)
    module, files = next(iter(half.lora)), three[1]
    values = {0.0, 2.0}  # a kept value is divided by the density
    first, second = (2.0**0.5 * f.lora[module].A_RI for f in files[:2])
    close = [torch.isclose(half.lora[module].A_RI, x * first + y * second, atol=1e-5) for x in values for y in values]
    assert torch.stack(close).any(0).all()


def test_the_model_is_as_before_and_the_random_state_too(three):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    file = combine(model, three[0], spec_of("dare"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    place(model, file)
    module = next(iter(file.lora))
    added = model.get_submodule(module).weight - before[f"{module}.weight"]
    torch.testing.assert_close(added.detach(), product(file.lora[module]), rtol=1e-4, atol=1e-5)


def test_stages_keep_their_numbers_where_one_was_rejected(tmp_path):
    run, files = make_run(tmp_path, ("merge",) * 4, rejected=(2,))
    lineage = open_source(run, 4).lineage
    base = {n: p.detach() for n, p in adapters.base_parameters(tiny_model()).items()}
    spec = combination("linear_svd", committed=[1, 3, 4], stages=[3, 4], weights=[1.0, 0.5], rank=8)
    found = combine(tiny_model(), lineage, spec)
    module, name = next(iter(found.lora)), PROJECTOR[0]
    wanted = product(files[2].lora[module]) + 0.5 * product(files[3].lora[module])
    torch.testing.assert_close(product(found.lora[module]), wanted, rtol=1e-4, atol=1e-5)
    third, fourth = files[2].full[name] - files[0].full[name], files[3].full[name] - files[2].full[name]
    torch.testing.assert_close(found.full[name], base[name] + third + 0.5 * fourth, rtol=1e-5, atol=1e-6)
    shorter = combination("linear_svd", committed=[1, 3, 4], stages=[1, 3], rank=8)
    assert combined_digest(lineage, shorter) == combined_digest(open_source(run, 3).lineage, shorter)


def test_a_rank_that_no_matrix_has_is_refused(three):
    with pytest.raises(ConfigError, match="no rank above 32") as error:
        made(three, "linear_svd", rank=1000)
    assert "--rank 32" in str(error.value)
    assert {pair.rank for pair in made(three, "linear_svd", rank=32).lora.values()} == {32}


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_are_finite(weight):
    with pytest.raises(ConfigError, match="not finite"):
        spec_of("linear", weights=[1.0, weight, 1.0])


def test_a_stage_that_went_on_training_counts_for_what_it_added(tmp_path):
    run, files = make_run(tmp_path, ("keep", "keep", "merge"))
    lineage = open_source(run, 3).lineage
    module = next(iter(files[0].lora))
    own = product(own_effect(lineage, 2).lora[module])
    torch.testing.assert_close(
        own, product(files[1].lora[module]) - product(files[0].lora[module]), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ConfigError, match="went on training the adapter below") as error:
        combine(tiny_model(), lineage, spec_of("ties"))
    assert "ties_svd" in str(error.value)
    found = combine(tiny_model(), lineage, spec_of("linear_svd", rank=20))  # three own effects: the third stage itself
    torch.testing.assert_close(product(found.lora[module]), product(files[2].lora[module]), rtol=1e-4, atol=1e-5)


def test_whole_weights_and_other_ranks_are_refused_with_the_cure(tmp_path, three):
    run, _ = make_run(tmp_path, ("merge", "none"))
    with pytest.raises(StateError, match="whole weights"):
        combine(tiny_model(), open_source(run, 2).lineage, combination("linear", committed=[1, 2]))
    model = tiny_model()
    adapters.attach(model, three[1][0], name="live")
    with pytest.raises(ConfigError, match="without adapters"):
        combine(model, three[0], spec_of("linear"))


@pytest.mark.parametrize(
    ("how", "settings", "text"),
    [
        ("linear", {"stages": [1, 4]}, "stage 4 is not committed"),
        ("linear", {"stages": [0, 1]}, "stage 0 is not committed"),
        ("linear", {"stages": [1, 1]}, "at least two different"),
        ("linear", {"stages": [2]}, "at least two different"),
        ("ties", {"weights": [1.0]}, "1 weights for 3 stages"),
        ("linear", {"density": 0.5}, "goes with ties and dare"),
        ("ties", {"density": 0.0}, "no share"),
        ("dare", {"density": 1.5}, "no share"),
        ("ties", {"rank": 4}, "end in _svd"),
        ("ties_svd", {"rank": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_combined_is_refused(how, settings, text):
    with pytest.raises(ConfigError, match=text) as error:
        spec_of(how, **settings)
    assert error.value.problems[0].fix


def test_names_and_digests_tell_combinations_apart(three):
    one, two = spec_of("ties", stages=[1, 2]), spec_of("ties", stages=[1, 2], density=0.4)
    assert one.name.startswith("ties-01-02-") and one.name != two.name
    assert combined_digest(three[0], one) != combined_digest(three[0], two)
    assert spec_of("linear").weights == (1.0, 1.0, 1.0) and spec_of("ties").density == 0.5
