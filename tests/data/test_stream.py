"""One stream: order by seed and epoch, an order of a method's own, views, chosen rows."""

from dataclasses import replace

import numpy as np
import pytest

from mcit.core.errors import DataError, TrainingError
from mcit.core.types import Turn
from mcit.data.stream import ChosenStream, Shuffle, Stream, epoch_order, mix, together
from tests.fakes.rows import row

ROWS = [row(f"q{k}", "a", id=f"r{k}") for k in range(3)]


def test_order_is_frozen():
    """These orders must never change: committed runs depend on them."""
    assert tuple(epoch_order(1, 0, 8)) == (0, 7, 4, 1, 5, 6, 3, 2)
    assert tuple(epoch_order(1, 1, 8)) == (3, 4, 2, 6, 5, 1, 0, 7)
    assert sorted(epoch_order(3, 5, 1000)) == list(range(1000))


def test_order_is_uniform():
    """First places over 6000 seeds of 6 rows: 1000 each, standard deviation 29."""
    counts = [0] * 6
    for seed in range(6000):
        counts[epoch_order(seed, 0, 6)[0]] += 1
    assert all(850 < count < 1150 for count in counts)


def twice(epoch, count, seed):
    """Every row twice in a row, over two epochs: views 0 and 1."""
    return [((epoch % 2 * count + k) // 2, (epoch % 2 * count + k) % 2) for k in range(count)]


def shown(row, view, seed):
    return replace(row, turns=(Turn("user", f"{row.question}-{view}-{seed}"), row.turns[1]))


def test_an_order_of_its_own_with_views_crosses_epochs():
    """Three rows in pairs over two epochs: r0 r0' r1 | r1' r2 r2', whatever the step's border."""
    stream = Stream("task", ROWS, per_step=4, seed=7, total=12, group=2, order=twice, show=shown)
    assert [stream.at(p).question for p in range(6)] == ["q0", "q0-1-7", "q1", "q1-1-7", "q2", "q2-1-7"]
    assert [stream.draw(p) for p in (9, 3, 0)] == [(1, 1), (1, 1), (0, 0)]  # forwards and back
    assert stream.step(8) == range(8, 12)


def test_orders_and_views_that_are_none():
    def broken(order, show=None):
        return Stream("s", ROWS, per_step=1, seed=0, order=order, show=show)

    with pytest.raises(TrainingError, match="2 draws where 3 are due"):
        broken(lambda *_: [(0, 0), (1, 0)]).at(0)
    with pytest.raises(TrainingError, match=r"draw \(3, 0\) is none of 3 rows"):
        broken(lambda *_: [(0, 0), (1, 0), (3, 0)]).at(0)
    with pytest.raises(TrainingError, match="nothing makes views"):
        broken(lambda *_: [(0, 1)] * 3).at(0)
    with pytest.raises(TrainingError, match="id or its number of images"):
        broken(lambda *_: [(0, 1)] * 3, lambda r, v, s: replace(r, id="other")).at(0)


def test_chosen_rows_are_asked_for_when_a_step_begins():
    asked = []

    def choose(count, size):
        asked.append((count, size))
        return [(len(asked) % 3, 0), (2, 0)][:size]

    stream = ChosenStream("s", ROWS, per_step=2, seed=0, total=3)
    stream.choose = choose
    seen = []
    for cursor in (0, 2, 4):
        positions = stream.step(cursor)
        stream.enter(positions)
        seen.append([stream.at(p).id for p in positions])
    assert seen == [["r1", "r2"], ["r2"], []] and asked == [(3, 2), (3, 1)]
    stream.choose = lambda count, size: [(0, 0)]
    with pytest.raises(TrainingError, match="1 draws where 2 are due"):
        stream.enter(range(0, 2))


def test_groups_divide_a_step_and_a_passive_stream_takes_no_part():
    with pytest.raises(DataError, match="3 rows a step in groups of 2"):
        Stream("s", ROWS, per_step=3, seed=0, group=2)
    with pytest.raises(DataError, match="-1 rows a step"):
        Stream("s", ROWS, per_step=-1, seed=0)
    assert len(Stream("s", ROWS, per_step=0, seed=0).step(0)) == 0


def test_rows_of_one_picture_follow_the_first_of_them():
    """By hand: order 0 7 4 1 5 6 3 2; rows 0, 4, 6, 2 show picture 9, rows 7 and 3 picture 8, the others one each."""
    images = np.array([9, -1, 9, 8, 9, -2, 9, 8])
    assert together((0, 7, 4, 1, 5, 6, 3, 2), images, 8).tolist() == [0, 4, 6, 2, 7, 3, 1, 5]
    assert together((0, 7, 4, 1, 5, 6, 3, 2), images, 3).tolist() == [0, 4, 6, 7, 3, 1, 5, 2]
    assert together((0, 7, 4, 1, 5, 6, 3, 2), images, 1).tolist() == [0, 7, 4, 1, 5, 6, 3, 2]
    assert together((), images[:0], 3).tolist() == []


def test_one_row_per_picture_is_the_plain_order():
    shuffle = Shuffle(5, 100, images=np.arange(100), most=8)
    assert tuple(shuffle.order(3)) == tuple(epoch_order(5, 3, 100))


def test_an_order_by_pictures_is_the_same_at_any_place_and_time():
    """A stream asked from the middle gives what one asked from the start gives; every row once an epoch."""
    rows = [row(f"q{k}", "a", id=f"r{k}") for k in range(60)]
    images = np.arange(60) % 12

    def stream():
        return Stream("task", rows, per_step=7, seed=3, shuffle=Shuffle(3, 60, images=images, most=4))

    whole = [stream().draw(k)[0] for k in range(180)]
    one = stream()
    assert [one.draw(k)[0] for k in reversed(range(180))] == whole[::-1]
    assert all(sorted(whole[e : e + 60]) == list(range(60)) for e in (0, 60, 120))
    assert whole[:60] != whole[60:120]
    runs = sum(images[a] == images[b] for a, b in zip(whole[:60], whole[1:60], strict=False))
    assert runs >= 3 * 12


def test_mixed_streams_share_an_order_by_pictures():
    """Rows of one picture in two streams come in one step."""
    rows = [row(f"q{k}", "a", id=f"r{k}") for k in range(12)]
    shuffle = Shuffle(3, 24, images=np.concatenate([np.arange(12), np.arange(12)]), most=8)
    first, second = mix([("task", rows), ("more", rows)], per_step=2, seed=3, total=24, shuffle=shuffle)
    for start in range(0, 24, 2):
        (a,), (b,) = first.members(range(start, start + 2)), second.members(range(start, start + 2))
        assert first.at(a) == second.at(b)
