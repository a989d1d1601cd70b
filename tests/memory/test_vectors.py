import numpy as np
import pytest

from mcit.core.errors import StateError
from mcit.memory.vectors import Vectors


def drawn(count, dimension=16, seed=0):
    return np.random.RandomState(seed).normal(size=(count, dimension)).astype(np.float32)


def test_nearest_first_by_cosine_whatever_the_length():
    held = Vectors(2)
    held.add(np.array([[10.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    assert [place for place, _ in held.search(np.array([0.1, 0.0]), 2)] == [0, 2]
    assert held.search(np.array([5.0, 0.0]), 9)[0] == (0, 1.0) and len(held.search(np.array([5.0, 0.0]), 9)) == 3
    assert Vectors(2).search(np.array([1.0, 0.0]), 5) == []


def test_equal_vectors_come_in_their_order():
    held = Vectors(2)
    held.add(np.array([[1.0, 0.0]] * 8))
    assert [place for place, _ in held.search(np.array([1.0, 0.0]), 3)] == [0, 1, 2]


def test_the_same_as_sorting_all_cosines():
    rows, held = drawn(400), Vectors(16)
    for part in np.array_split(rows, 7):
        held.add(part)
    held.drop([3, 399, 0])
    rows = np.delete(rows, [0, 3, 399], axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.allclose(held.matrix_ND, rows, atol=1e-6) and len(held) == 397
    for query in drawn(5, seed=1):
        want = np.argsort(-(rows @ query))[:10].tolist()
        assert [place for place, _ in held.search(query, 10)] == want


@pytest.mark.parametrize("wrong", [np.zeros((1, 2)), np.full((1, 2), np.nan), np.ones((1, 3)), np.ones(2)])
def test_what_has_no_direction_or_another_dimension_is_refused(wrong):
    held = Vectors(2)
    with pytest.raises(StateError) as refused:
        held.add(wrong)
    assert refused.value.where and refused.value.fix and len(held) == 0


def test_above_the_limit_an_inverted_file_finds_nearly_the_same():
    pytest.importorskip("faiss")
    rows = drawn(3000)
    few, many = Vectors(16), Vectors(16, exact=1000)
    few.add(rows)
    for part in np.array_split(rows, 4):  # grows while it is searched
        many.add(part)
        many.search(rows[0], 1)
    many.drop(list(range(0, 3000, 3)))
    few.drop(list(range(0, 3000, 3)))
    assert not many.exact and few.exact
    shared = []
    for query in drawn(40, seed=2):
        want, got = (dict(held.search(query, 10)) for held in (few, many))
        shared.append(len(want.keys() & got.keys()) / 10)
        assert all(got[place] == pytest.approx(want[place], abs=1e-5) for place in want.keys() & got.keys())
    assert np.mean(shared) > 0.7  # one list in eight is looked through, and these have no structure at all
    assert many.search(rows[1], 1)[0][1] == pytest.approx(1.0, abs=1e-5)


def test_without_faiss_all_entries_are_looked_at(monkeypatch):
    monkeypatch.setattr("mcit.memory.vectors.find_spec", lambda name: None)
    held = Vectors(16, exact=10)
    held.add(drawn(50))
    assert held.exact and not held.few and held.search(drawn(50)[7], 1)[0][0] == 7
