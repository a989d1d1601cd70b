import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcit.methods.formulas import lowrank
from mcit.methods.formulas.lowrank import (
    key_count,
    key_mean,
    lowrank_entries,
    pack_keys,
    product_distance2,
    top_positions,
    union,
    unpack_keys,
)

A, B = torch.tensor([[1.0, -2, 0.5], [0, 1, 2]]), torch.tensor([[2.0, 1], [-1, 3]])
PENALISED = torch.tensor([1, 5])  # (0, 1) and (1, 2) of the 2 x 3 matrix


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles and several column blocks on small matrices."""
    monkeypatch.setattr(lowrank, "_TILE", 40)
    monkeypatch.setattr(lowrank, "_BAGS", 3)


def leaves(dtype=torch.float32):
    return B.to(dtype).requires_grad_(), A.to(dtype).requires_grad_()


def test_by_hand():
    """B A = [[2,-3,3],[-1,5,5.5]] (oracle O1 of the low-rank card); its squared norm is 4+9+9+1+25+30.25 = 78.25."""
    assert product_distance2(B, A, torch.zeros(2, 2), torch.zeros(2, 3)).item() == 78.25
    assert product_distance2(B, A, B, A).abs().item() < 1e-4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_equals_the_dense_product_and_its_gradient(seed):
    g = torch.Generator().manual_seed(seed)
    B, A, B0, A0 = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((5, 2), (2, 4), (5, 3), (3, 4)))
    B.requires_grad_(), A.requires_grad_()
    dense = ((B @ A - B0 @ A0) ** 2).sum()
    fast = product_distance2(B, A, B0, A0)
    assert torch.allclose(dense, fast, rtol=1e-9)
    for x, y in zip(torch.autograd.grad(dense, [B, A]), torch.autograd.grad(fast, [B, A]), strict=True):
        assert torch.allclose(x, y, rtol=1e-6, atol=1e-9)


# ---- RegLoRA: choosing and packing ----------------------------------------------------------------------------------
def test_selection_by_hand():
    """O1, O2: |B A| = [[2,3,3],[1,5,5.5]]; 0.34 of 6 is 2: (1,2) and (1,1), flat 5 and 4. 0.02 of 6 is 0, so 1: flat 5."""
    assert (B @ A).tolist() == [[2, -3, 3], [-1, 5, 5.5]]
    assert key_count((2, 3), 0.34) == 2 and top_positions(B @ A, 2).tolist() == [4, 5]
    assert key_count((2, 3), 0.02) == 1 and top_positions(B @ A, 1).tolist() == [5]
    assert top_positions(B @ A, 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_ties_go_to_the_lowest_position():
    """After 5.5 and 5 the entries (0,1) = -3 and (0,2) = 3 tie: flat 1 is taken. Four equal entries, two wanted: 0 and 1."""
    assert top_positions(B @ A, 3).tolist() == [1, 4, 5]
    assert top_positions(torch.tensor([[1.0, -1], [1, 1]]), 2).tolist() == [0, 1]


def test_selection_is_made_in_fp32():
    """O12: 1.001 and 1.002 are both 1.0 in bf16; in fp32 the second is larger."""
    values = torch.tensor([[1.001, 1.002]])
    assert values.bfloat16().tolist() == [[1.0, 1.0]]
    assert top_positions(values, 1).tolist() == [1]


def test_union_by_hand():
    """O10: {0,1} then {1,2} of 6: a set of 3, a multiset of 4 with 1 twice."""
    first = union(None, torch.tensor([0, 1]), shape=(2, 3))
    assert unpack_keys(union(first, torch.tensor([1, 2]), shape=(2, 3)), shape=(2, 3)).tolist() == [0, 1, 2]
    both = union(first, torch.tensor([1, 2]), shape=(2, 3), repeats=True)
    assert unpack_keys(both, shape=(2, 3)).tolist() == [0, 1, 1, 2]


def test_mask_bits_by_hand():
    """3 x 10 has 2 bytes a row. Columns 0, 1, 9 of row 0 are bytes 1+2 = 3 and 2; column 3 of row 2 is byte 8.
    Position 1 three times: count 3 needs a second plane, which holds 2 in the first byte and nothing else."""
    positions = torch.tensor([0, 1, 9, 23])
    mask = pack_keys(positions, shape=(3, 10))
    assert mask.dtype == torch.uint8 and mask.tolist() == [[[3, 2], [0, 0], [8, 0]]]
    assert unpack_keys(mask, shape=(3, 10)).tolist() == positions.tolist()
    counted = pack_keys(torch.tensor([0, 1, 1, 1, 9, 23]), shape=(3, 10))
    assert counted.tolist() == [[[3, 2], [0, 0], [8, 0]], [[2, 0], [0, 0], [0, 0]]]


def test_the_smaller_form_is_taken():
    """64 x 64 as a mask is 512 bytes: 128 positions of 4 bytes are as small and stay positions, 129 are a mask."""
    assert pack_keys(torch.arange(128), shape=(64, 64)).dtype == torch.int32
    assert pack_keys(torch.arange(129), shape=(64, 64)).shape == (1, 64, 8)


def test_a_position_too_large_for_its_integer_is_a_bit(monkeypatch):
    """3 x 10: position 1 is 4 bytes, a mask 6. Where only positions up to 29 of 30 had an integer the mask would be taken."""
    assert pack_keys(torch.tensor([1]), shape=(3, 10)).tolist() == [1]
    monkeypatch.setattr(lowrank, "_INT32", 29)
    assert pack_keys(torch.tensor([1]), shape=(3, 10)).tolist() == [[[2, 0], [0, 0], [0, 0]]]


def test_sizes_for_a_7b_model():
    """O15: 2 % of 4096 x 4096 is 335,544, of 4096 x 11008 901,775; (4 * 335,544 + 3 * 901,775) * 32 = 129,520,032 a stage;
    one bit per weight of (4 * 4096^2 + 3 * 4096 * 11008) * 32 weights is 809,500,672 bytes."""
    square, wide = (4096, 4096), (11008, 4096)
    assert key_count(square, 0.02) == 335_544 and key_count(wide, 0.02) == 901_775
    assert 32 * (4 * key_count(square, 0.02) + 3 * key_count(wide, 0.02)) == 129_520_032
    mask = {s: s[0] * pack_keys(torch.arange(s[1]), shape=(8, s[1])).numel() // 8 for s in (square, wide)}
    assert 32 * (4 * mask[square] + 3 * mask[wide]) == 809_500_672


def test_eight_stages_take_at_most_1_1_bits_per_weight():
    g = torch.Generator().manual_seed(1)
    keys, size = None, []
    for _ in range(8):
        keys = union(
            keys, top_positions(torch.randn(96, 200, generator=g), key_count((96, 200), 0.02)), shape=(96, 200)
        )
        size.append(8 * keys.numel() * keys.element_size() / (96 * 200))
    assert size[0] == pytest.approx(32 * 0.02) and max(size) <= 1.1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_packing_loses_nothing(data):
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 19)))
    position = st.integers(0, shape[0] * shape[1] - 1)
    positions = sorted(data.draw(st.lists(position, max_size=60)))
    keys = pack_keys(torch.tensor(positions, dtype=torch.long), shape=shape)
    assert unpack_keys(keys, shape=shape).tolist() == positions
    assert keys.numel() * keys.element_size() <= 4 * len(positions)


# ---- RegLoRA: the penalty -------------------------------------------------------------------------------------------
def test_entries_by_hand():
    """O7: (0,1) is 2*(-2) + 1*1 = -3 and (1,2) is -1*0.5 + 3*2 = 5.5. O3: sum 8.5, mean square (9 + 30.25) / 2 = 19.625."""
    entries = lowrank_entries(B, A, PENALISED, chunk=1)
    assert entries.tolist() == [-3, 5.5]
    assert entries.abs().sum() == 8.5 and entries.pow(2).mean() == 19.625


@pytest.mark.parametrize("dense", [None, True, False])
def test_penalty_and_gradients_by_hand(dense):
    """O3, O4: mean(3, 5.5) = 4.25; dB = [[1,-0.5],[0.25,1]], dA = [[0,-1,-0.5],[0,-0.5,1.5]]; twice the loss, twice those."""
    for factor in (1, 2):
        b, a = leaves()
        value = key_mean(b, a, PENALISED.int(), dense=dense)
        assert value.item() == 4.25
        dB, dA = torch.autograd.grad(factor * value, [b, a])
        assert (dB / factor).tolist() == [[1, -0.5], [0.25, 1]]
        assert (dA / factor).tolist() == [[0, -1, -0.5], [0, -0.5, 1.5]]


@pytest.mark.parametrize("dense", [True, False])
def test_fresh_adapter_costs_and_pulls_nothing(dense):
    """O5: B = 0 gives 0 and gradients of exactly 0, for sign(0) = 0."""
    b, a = torch.zeros(2, 2, requires_grad=True), A.clone().requires_grad_()
    value = key_mean(b, a, PENALISED.int(), dense=dense)
    dB, dA = torch.autograd.grad(value, [b, a])
    assert value.item() == 0 and not dB.any() and not dA.any()


@pytest.mark.parametrize("dense", [True, False])
def test_repeats_by_hand(dense):
    """O6: (0,1) once and (1,2) twice: (3 + 5.5 + 5.5) / 3 = 4.6667, from positions and from a counting mask."""
    positions = torch.tensor([1, 5, 5])
    mask = pack_keys(positions, shape=(2, 3))
    assert mask.dtype == torch.uint8 and mask.shape == (2, 2, 1)
    for keys in (positions.int(), mask):
        assert key_mean(B, A, keys, dense=dense).item() == pytest.approx(14 / 3)


def loops(B, A, positions):
    """Mean of |B A| over positions and both gradients, element by element."""
    (O, R), I = B.shape, A.shape[1]
    value, dB, dA = 0.0, [[0.0] * R for _ in range(O)], [[0.0] * I for _ in range(R)]
    for position in positions:
        o, i = divmod(position, I)
        entry = sum(float(B[o, r] * A[r, i]) for r in range(R))
        value += abs(entry) / len(positions)
        for r in range(R):
            sign = (entry > 0) - (entry < 0)
            dB[o][r] += sign * float(A[r, i]) / len(positions)
            dA[r][i] += sign * float(B[o, r]) / len(positions)
    return value, torch.tensor(dB, dtype=torch.float64), torch.tensor(dA, dtype=torch.float64)


def masked(positions, shape):
    """The mask form whatever its size."""
    count = torch.bincount(positions, minlength=shape[0] * shape[1]).view(shape)
    bits = torch.nn.functional.pad(count, (0, -shape[1] % 8)).view(shape[0], -1, 8)
    value = 1 << torch.arange(8)
    return torch.stack([(((bits >> p) & 1) * value).sum(-1) for p in range(3)]).to(torch.uint8)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("form", ["positions", "mask"])
@pytest.mark.parametrize("dense", [True, False])
def test_equals_loops_over_elements_in_float64(dense, form):
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 10_000), st.integers(1, 13), st.integers(1, 21), st.integers(1, 4))
    def check(seed, O, I, R):
        g = torch.Generator().manual_seed(seed)
        b = torch.randn(O, R, generator=g, dtype=torch.float64).requires_grad_()
        a = torch.randn(R, I, generator=g, dtype=torch.float64).requires_grad_()
        number = int(torch.randint(1, 3 * O * I, (), generator=g)) // 2 + 1
        # each position at most 7 times, what three planes hold
        positions = torch.randint(O * I, (number,), generator=g).sort().values
        positions = positions[torch.cat([torch.ones(7), positions[7:] != positions[:-7]]).bool()[: len(positions)]]
        keys = positions.int() if form == "positions" else masked(positions, (O, I))
        value = key_mean(b, a, keys, dense=dense)
        want, want_B, want_A = loops(b.detach(), a.detach(), positions.tolist())
        assert value.item() == pytest.approx(want, rel=1e-6)
        dB, dA = torch.autograd.grad(value, [b, a])
        for got, expected in ((dB, want_B), (dA, want_A)):
            assert (got - expected).norm() <= 1e-6 * expected.norm() + 1e-12

    check()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dense", [True, False])
def test_gradients_by_finite_differences(dense):
    g = torch.Generator().manual_seed(7)
    B, A = torch.randn(9, 3, generator=g, dtype=torch.float64), torch.randn(3, 11, generator=g, dtype=torch.float64)
    keys = torch.randperm(99, generator=g)[:30].sort().values.int()
    b, a = B.clone().requires_grad_(), A.clone().requires_grad_()
    dB, dA = torch.autograd.grad(key_mean(b, a, keys, dense=dense), [b, a])
    step = 1e-6
    for tensor, grad in ((B, dB), (A, dA)):
        for i in range(tensor.numel()):
            at = tensor.view(-1)[i].item()
            ends = []
            for sign in (1, -1):
                tensor.view(-1)[i] = at + sign * step
                ends.append(key_mean(B, A, keys, dense=dense).item())
            tensor.view(-1)[i] = at
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(grad.flatten()[i].item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("share", [0.02, 0.06, 0.5])
def test_the_way_it_chooses_agrees_with_autograd_in_fp32(share):
    """300 x 300: sparse positions, a sparse mask, and a mask so full that tiles are dense."""
    g = torch.Generator().manual_seed(3)
    b = torch.randn(300, 4, generator=g).requires_grad_()
    a = torch.randn(4, 300, generator=g).requires_grad_()
    positions = top_positions((b @ a).detach(), key_count((300, 300), share))
    value = key_mean(b, a, pack_keys(positions, shape=(300, 300)))
    whole = (b @ a).flatten()[positions].abs().mean()
    assert value.item() == pytest.approx(whole.item(), rel=1e-6)
    for x, y in zip(torch.autograd.grad(value, [b, a]), torch.autograd.grad(whole, [b, a]), strict=True):
        assert (x - y).norm() <= 1e-6 * y.norm()


def test_nothing_dense_waits_for_backward():
    """What is saved is as large as A and B: (50 + 70) * 2 numbers, not 50 * 70."""
    saved = []
    b, a = torch.randn(50, 2, requires_grad=True), torch.randn(2, 70, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        key_mean(b, a, torch.arange(0, 3500, 50, dtype=torch.int32))
    assert sum(saved) == 240


def test_a_second_backward_is_refused():
    b, a = leaves()
    value = key_mean(b, a, PENALISED.int())
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace|in-place"):
        value.backward()


@pytest.mark.parametrize(("dense", "sparse_at"), [(None, {0.02}), (False, {0.02, 0.5}), (True, set())])
def test_a_tile_is_sparse_only_where_few_positions_are_kept(dense, sparse_at):
    """On a CPU, above 65,536 weights: 2 % kept is sparse, a half is not; `dense` decides it for every share."""
    b, a = torch.zeros(300, 1), torch.zeros(1, 300)
    for share in (0.02, 0.5):
        keys = torch.arange(0, 300 * 300, round(1 / share), dtype=torch.int32)
        tiles = list(lowrank._tiles(keys, b, a, dense))
        assert {places is not None for _, _, places, _ in tiles} == {share in sparse_at}


def test_a_tile_of_a_bit_mask_is_sparse_only_below_the_same_share():
    """A tenth of 90,000 positions is a mask (above 1 / 32) and sparse (below 1 / 6); a half is a mask and dense."""
    b, a = torch.zeros(300, 1), torch.zeros(1, 300)
    for share, sparse in ((0.1, True), (0.5, False)):
        keys = pack_keys(torch.arange(0, 300 * 300, round(1 / share)), shape=(300, 300))
        assert keys.dim() == 3
        assert {places is not None for _, _, places, _ in lowrank._tiles(keys, b, a, None)} == {sparse}


def test_small_matrices_and_other_devices_are_dense():
    """100 x 100 is below 65,536 weights: dense even for one key, as is any size off the CPU; `dense` has the last word."""
    small, large = ((torch.zeros(n, 1), torch.zeros(1, n)) for n in (100, 300))
    assert [places for _, _, places, _ in lowrank._tiles(torch.tensor([7], dtype=torch.int32), *small, None)] == [None]
    assert [lowrank._sparse_allowed(*pair, None) for pair in (small, large)] == [False, True]
    elsewhere = [t.to("meta") for t in large]
    assert [lowrank._sparse_allowed(*elsewhere, dense) for dense in (None, True, False)] == [False, False, True]


@pytest.mark.parametrize(("columns", "tiles"), [(20, [(0, 2), (2, 3)]), (50, [(0, 1), (1, 2), (2, 3)])])
@pytest.mark.usefixtures("small_tiles")
def test_a_tile_holds_as_many_rows_as_fit_and_at_least_one(columns, tiles):
    """Tiles of 40: two rows of 20; of 50, one row too large for it, and never a second one on top."""
    keys = torch.tensor([1], dtype=torch.int32)
    found = lowrank._tiles(keys, torch.zeros(3, 1), torch.zeros(1, columns), None)
    assert [(start, stop) for start, stop, _, _ in found] == tiles


@pytest.mark.parametrize("dense", [True, False])
def test_no_keys_have_no_mean(dense):
    """0 / 0 is NaN on either way: a mean over nothing is never taken for a penalty of 0."""
    assert key_mean(B, A, torch.zeros(0, dtype=torch.int32), dense=dense).isnan()


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("number", [900, 9000])
def test_the_kept_order_gives_what_the_tiles_give(repeats, number, monkeypatch):
    """Small matrices go another way, with positions and with bit masks: same value and gradients, for other values too."""
    generator = torch.Generator().manual_seed(5)
    positions = torch.randint(300 * 250, (number,), generator=generator).sort().values
    keys = pack_keys(positions if repeats else positions.unique(), shape=(300, 250))
    assert keys.dim() == (1 if number == 900 else 3)
    for _ in range(2):
        B = torch.randn(300, 6, generator=generator, requires_grad=True)
        A = torch.randn(6, 250, generator=generator, requires_grad=True)
        monkeypatch.setattr(lowrank, "_KEPT_SHARE", 1 / 4)
        kept = key_mean(B, A, keys)
        grads = torch.autograd.grad(kept, [B, A])
        assert keys._order.shape == (300, 250)
        monkeypatch.setattr(lowrank, "_KEPT_SHARE", 0)
        tiled = key_mean(B, A, keys)
        torch.testing.assert_close(kept, tiled, rtol=1e-6, atol=0)
        for ours, theirs in zip(grads, torch.autograd.grad(tiled, [B, A]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_order_is_worked_out_once_and_for_one_shape():
    keys = torch.tensor([0, 5, 80_000], dtype=torch.int32)
    first = lowrank._order(keys, (300, 300))
    assert lowrank._order(keys, (300, 300)) is first
    other = lowrank._order(keys, (400, 250))
    assert other is not first and other.row_starts.tolist()[-1] == 3 and len(other.column_starts) == 251


def test_a_bit_mask_is_unpacked_once_whatever_number_of_steps_follow(monkeypatch):
    """8 stages of 2 %: the mask of a matrix is looked at in the first step only, and a full mask keeps no order."""
    keys = pack_keys(torch.arange(0, 90_000, 8), shape=(300, 300))
    full = pack_keys(torch.arange(0, 90_000, 2), shape=(300, 300))
    B, A = torch.randn(300, 2), torch.randn(2, 300)
    counts, unpacked = lowrank._counts, []
    monkeypatch.setattr(lowrank, "_counts", lambda *args: unpacked.append(1) or counts(*args))
    assert key_mean(B, A, keys).item() == pytest.approx((B @ A).flatten()[::8].abs().mean().item(), rel=1e-6)
    first = len(unpacked)
    for _ in range(3):
        key_mean(B, A, keys)
    assert len(unpacked) == first and keys._number == 11_250
    key_mean(B, A, full)
    assert not hasattr(full, "_order")


def test_the_kept_order_takes_four_bytes_a_key():
    """int16 columns and rows; a matrix with a side beyond 32,767 takes int32."""
    positions = torch.arange(0, 90_000, 10)
    order = lowrank._order(positions.int(), (300, 300))
    assert order.columns.nbytes + order.rows.nbytes == 4 * len(positions)
    assert lowrank._order(positions.int(), (2, 45_000)).columns.dtype == torch.int32


def test_a_share_is_taken_as_it_is_written():
    """0.29 of 100 x 100 is 2900; in floating point 0.29 * 100 * 100 is 2899.9999999999995. 0.02 of 5 x 9 is 0.9: one."""
    assert key_count((100, 100), 0.29) == 2900 and key_count((5, 9), 0.02) == 1 and key_count((10, 10), 0.999) == 99
