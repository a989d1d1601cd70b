"""Order, cursors, micro-batches and ranks.

T17: descending lengths [5, 4, 3, 2] in 2 chunks give [[0, 3], [1, 2]], 7 and 7.
"""

import math
import threading

import pytest
import torch

from mcit.core.errors import DataError, StateError
from mcit.data.encode import IGNORE, Encoder
from mcit.data.rowset import row_length
from mcit.data.stream import Stream, mix
from mcit.data.streams import StageStreams, deal, even_chunks, grouped
from tests.fakes.processors import make_processor
from tests.fakes.rows import picture, row


@pytest.fixture(scope="module")
def encoder():
    """One small encoder."""
    return Encoder(make_processor("chatml"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """30 rows of different lengths, every third with a picture."""
    folder = tmp_path_factory.mktemp("rows")
    name = picture(folder)
    return [
        row("<image>\nq" + " w" * k, "yes", images=(name,), root=folder, id=f"r{k}")
        if k % 3 == 0
        else row("q" + " w" * k, f"no {k}", id=f"r{k}")
        for k in range(30)
    ]


def stage(rows, encoder, **settings):
    """A task stream of 10 rows a step over two epochs, and an endless second stream."""
    streams = [
        Stream("task", rows, per_step=10, seed=1, total=2 * len(rows)),
        Stream("replay", rows[:7], per_step=3, seed=2),
    ]
    return StageStreams(streams, encoder, **{"micro_batch": 4, **settings})


def same(a, b):
    """Whether two batches are equal bit for bit."""
    return (
        a.stream == b.stream
        and a.row_ids == b.row_ids
        and torch.equal(a.input_ids_BT, b.input_ids_BT)
        and torch.equal(a.labels_BT, b.labels_BT)
        and a.pixels.keys() == b.pixels.keys()
        and all(torch.equal(a.pixels[k], b.pixels[k]) for k in a.pixels)
    )


def test_a_step_crosses_the_epoch_border_and_the_last_one_is_short(rows):
    stream = Stream("task", rows[:7], per_step=5, seed=1, total=12)
    drawn = [[stream.at(p).id for p in stream.step(c)] for c in (0, 5, 10, 12)]
    assert [len(ids) for ids in drawn] == [5, 5, 2, 0]
    flat = sum(drawn, [])
    assert sorted(flat[:7]) == sorted(r.id for r in rows[:7]) and len(set(flat[7:])) == 5
    assert flat[:5] != flat[7:12]  # another epoch, another order
    endless = Stream("x", rows[:3], per_step=5, seed=1)
    assert len(endless.step(10**6)) == 5


def test_every_row_once_an_epoch_and_streams_in_order(rows, encoder):
    streams = stage(rows, encoder)
    seen, replayed = [], 0
    for _ in range(3):
        batches = streams.next_step()
        assert [b.stream for b in batches] == ["task"] * 3 + ["replay"]
        assert [len(b.rows) for b in batches] == [4, 4, 2, 3]
        seen += [identity for b in batches[:3] for identity in b.row_ids]
        replayed += len(batches[3].rows)
    assert sorted(seen) == sorted(r.id for r in rows)
    assert streams.cursors == {"task": 30, "replay": 9} and replayed == 9


def test_seek_continues_bit_for_bit(rows, encoder):
    straight, resumed = stage(rows, encoder), stage(rows, encoder)
    for _ in range(2):
        straight.next_step()
    resumed.seek(straight.cursors)
    for _ in range(3):
        expected, found = straight.next_step(), resumed.next_step()
        assert len(expected) == len(found) and all(same(a, b) for a, b in zip(expected, found, strict=True))
    with pytest.raises(StateError, match="saved positions"):
        resumed.seek({"task": 3})


def test_after_the_last_row_the_task_stream_is_empty(rows, encoder):
    streams = stage(rows, encoder)
    streams.seek({"task": 55, "replay": 0})
    assert [len(b.rows) for b in streams.next_step()] == [4, 1, 3]
    assert [b.stream for b in streams.next_step()] == ["replay"]
    assert streams.cursors["task"] == 60


def test_results_do_not_depend_on_worker_threads(rows, encoder):
    plain, threaded = stage(rows, encoder), stage(rows, encoder, workers=3)
    for step in range(6):
        if step == 3:  # jump while rows of the next step are being prepared
            plain.seek({"task": 20, "replay": 5})
            threaded.seek({"task": 20, "replay": 5})
        expected, found = plain.next_step(), threaded.next_step()
        assert len(expected) == len(found) and all(same(a, b) for a, b in zip(expected, found, strict=True))
    threaded.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("rows")]


def test_a_bad_row_shows_up_with_workers_too(rows, encoder):
    bad = [*rows[:5], row("<image>", "yes", id="bad")]
    streams = StageStreams([Stream("task", bad, per_step=2, seed=0)], encoder, micro_batch=2, workers=2)
    with pytest.raises(DataError, match="placeholder") as caught:
        for _ in range(3):
            streams.next_step()
    assert caught.value.where.endswith(":bad")
    streams.close()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_rows_of_a_step(rows, encoder, world):
    """The same rows in the same step as one rank has, equally many micro-batches each."""
    one = stage(rows, encoder)
    ranks = [stage(rows, encoder, rank=r, world=world) for r in range(world)]
    for _ in range(7):
        whole = one.next_step()
        parts = [streams.next_step() for streams in ranks]
        for name in ("task", "replay"):
            expected = sorted(i for b in whole if b.stream == name for i in b.row_ids)
            found = sorted(i for p in parts for b in p if b.stream == name and b.target_count for i in b.row_ids)
            assert found == expected
        assert len({tuple(b.stream for b in p) for p in parts}) == 1
        assert sum(b.target_count for p in parts for b in p) == sum(b.target_count for b in whole)
        assert all(streams.cursors == one.cursors for streams in ranks)


def test_a_rank_without_rows_gets_one_that_teaches_nothing(rows, encoder):
    streams = StageStreams([Stream("task", rows, per_step=2, seed=0)], encoder, micro_batch=4, rank=2, world=3)
    (batch,) = streams.next_step()
    assert batch.target_count == 0 and (batch.labels_BT == IGNORE).all() and len(batch.rows) == 1


def test_rows_of_a_step_are_grouped_by_length(rows, encoder):
    first, second, third, _ = stage(rows, encoder).next_step()
    shortest = [min(row_length(r) for r in b.rows) for b in (first, second, third)]
    longest = [max(row_length(r) for r in b.rows) for b in (first, second, third)]
    assert shortest[0] >= longest[1] and shortest[1] >= longest[2]


def test_t17_even_chunks():
    assert even_chunks([5, 4, 3, 2], 2) == [[0, 3], [1, 2]]
    assert even_chunks([5, 4, 3], 2) == [[0, 2], [1]]
    assert even_chunks([9, 1, 1, 1], 2) == [[0, 3], [1, 2]]  # the longest chunk is filled up all the same
    assert even_chunks([], 3) == [[], [], []]


def test_largest_batch_has_the_longest_rows(rows, encoder):
    batch = stage(rows, encoder).largest_batch()
    lengths = sorted((len(encoder.encode(r).input_ids_T) for r in rows), reverse=True)
    assert sorted(batch.attention_BT.sum(1).tolist(), reverse=True) == lengths[:4]
    assert batch.stream == "task"
    long = row("q" + " w" * 400, "yes", id="long")
    streams = StageStreams(
        [Stream("task", rows, per_step=4, seed=0), Stream("x", [long] * 4, per_step=4, seed=0)], encoder, micro_batch=4
    )
    assert streams.largest_batch().stream == "x"


def test_batches_in_stored_order(rows, encoder):
    streams = stage(rows, encoder)
    found = [b.row_ids for b in streams.batches("task", rows=4, limit=10)]
    assert [len(ids) for ids in found] == [4, 4, 2]
    assert [i for ids in found for i in ids] == [r.id for r in rows[:10]]
    assert streams.cursors == {"task": 0, "replay": 0}


def test_streams_that_cannot_be(rows, encoder):
    with pytest.raises(DataError, match="no rows"):
        Stream("task", [], per_step=1, seed=0)
    with pytest.raises(DataError, match="one name"):
        StageStreams([Stream("a", rows, per_step=1, seed=0)] * 2, encoder, micro_batch=1)
    empty = StageStreams([Stream("task", [], per_step=4, seed=0, total=0)], encoder, micro_batch=4)
    assert empty.next_step() == []


# ---- general rows beside the task's ---------------------------------------------------------------------------------
def drawn(stream, steps):
    """Ids of the rows of each step."""
    cursor, out = 0, []
    for _ in range(steps):
        positions = stream.step(cursor)
        out.append([stream.at(p).id for p in stream.members(positions)])
        cursor = positions.stop
    return out


@pytest.mark.parametrize(("n", "groups", "general", "indices"), [(600, 10, 60, 660), (5000, 84, 504, 5504)])
def test_batch_insertion_counts(n, groups, general, indices):
    """Oracle 12 of the GeRe card, B = 66 and k = 6: ceil(N / 60) steps of 6 general rows, also the last, short one."""
    task = Stream("task", [row("q", "a", id=f"t{k}") for k in range(n)], per_step=60, seed=1, total=n)
    pool = Stream("gere", [row("q", "a", id=f"g{k}") for k in range(1000)], per_step=6, seed=2)
    steps = math.ceil(n / 60)
    tasks, generals = drawn(task, steps), drawn(pool, steps)
    assert steps == groups and sum(map(len, generals)) == general and sum(map(len, tasks + generals)) == indices
    assert all(len(step) == 6 for step in generals) and sum(map(len, tasks)) == n
    assert all(len(step) == 60 for step in tasks[:-1]) and drawn(task, steps + 1)[-1] == []
    assert len({i for step in generals for i in step}) == general  # the pool is not exhausted, so nothing recurs


def test_the_pool_is_reshuffled_when_it_is_exhausted():
    pool = Stream("gere", [row("q", "a", id=f"g{k}") for k in range(10)], per_step=5, seed=2)
    steps = drawn(pool, 4)
    assert sorted(steps[0] + steps[1]) == sorted(steps[2] + steps[3]) and steps[0] + steps[1] != steps[2] + steps[3]


def mixed(n=5000, general=1000, *, per_step=66, epochs=2, seed=1):
    parts = [("task", [row("q", "a", id=f"t{k}") for k in range(n)])]
    parts += [("gere", [row("q", "a", id=f"g{k}") for k in range(general)])] if general else []
    return mix(parts, per_step=per_step, seed=seed, total=epochs * (n + general))


def test_natural_mixing():
    """Oracle 13: N = 5000 and 1000 general rows, share 1/6, each general id once an epoch; a step is 66 rows of both."""
    task, pool = mixed()
    steps = math.ceil(2 * 6000 / 66)
    tasks, generals = drawn(task, steps), drawn(pool, steps)
    sizes = [len(a) + len(b) for a, b in zip(tasks, generals, strict=True)]
    assert sizes[:-1] == [66] * (steps - 1) and sizes[-1] == 12000 - 66 * (steps - 1)
    assert sum(map(len, generals)) / sum(sizes) == pytest.approx(1 / 6)
    flat = [i for step in generals for i in step]
    assert sorted(flat[:1000]) == sorted(flat[1000:]) and len(set(flat[:1000])) == 1000 and flat[:1000] != flat[1000:]
    assert len({i for step in tasks for i in step}) == 5000
    counts = [len(step) for step in generals]
    assert len(set(counts)) > 5  # shuffled, not dealt out evenly


def test_mixed_streams_resume_and_share_out_over_ranks(rows, encoder):
    """One integer each, the same; two ranks together draw what one does; rows of a step do not depend on ranks."""

    def build(**settings):
        parts = [("task", rows[:20]), ("gere", rows[20:])]
        return StageStreams(mix(parts, per_step=7, seed=3, total=60), encoder, micro_batch=2, **settings)

    straight = steps_of(build(), 9)
    whole = [{i for b in step for i in b.row_ids} for step in straight]
    assert sum(len(ids) for ids in whole) == 60
    one, two = steps_of(build(rank=0, world=2), 9), steps_of(build(rank=1, world=2), 9)
    for k, ids in enumerate(whole):
        assert {i for b in one[k] + two[k] for i in b.row_ids} == ids
        assert [b.stream for b in one[k]] == [b.stream for b in two[k]]
    again = build()
    again.seek({"task": 35, "gere": 35})
    assert [b.row_ids for b in again.next_step()] == [b.row_ids for b in straight[5]]
    ahead = build(workers=2)
    assert [[b.row_ids for b in s] for s in steps_of(ahead, 9)] == [[b.row_ids for b in s] for s in straight]
    ahead.close()


def test_groups_share_a_micro_batch_on_one_rank(rows, encoder):
    """11 groups of 2 over 2 ranks with 2 groups to a micro-batch: neighbours stay neighbours, ranks take equally many."""

    def build(rank, world):
        task = Stream("task", rows[:22], per_step=22, seed=1, total=22, group=2)
        return StageStreams([task], encoder, micro_batch=5, rank=rank, world=world)

    task = build(0, 1).streams["task"]
    pairs = {(task.at(p).id, task.at(p + 1).id) for p in range(0, 22, 2)}
    seen = []
    for rank in (0, 1):
        batches = build(rank, 2).next_step()
        assert [len(b.rows) for b in batches] == [4, 4, 4 - 2 * rank]
        seen += [b.row_ids[k : k + 2] for b in batches for k in range(0, len(b.rows), 2)]
    assert set(seen) == pairs and len(seen) == 11
    with pytest.raises(DataError, match="2 rows must share a micro-batch, which takes 1"):
        StageStreams([task], encoder, micro_batch=1)


def test_a_passive_stream_is_read_by_passes_alone(rows, encoder):
    """Before, a stream of 0 rows a step had no batch to rehearse and died in max() of nothing."""
    streams = StageStreams([Stream("x", rows, per_step=0, seed=0)], encoder, micro_batch=4)
    assert streams.next_step() == [] and streams.cursors == {"x": 0}
    assert len(streams.largest_batch().rows) == 4
    assert sum(len(b.rows) for b in streams.batches("x", rows=4)) == 30


def test_views_are_told_and_ends_of_passes_handed_on(rows, encoder):
    def order(epoch, count, seed):
        return [(k, k % 2) for k in range(count)]

    for workers in (0, 2):
        stream = Stream("x", rows[:4], per_step=4, seed=0, until="3", order=order, show=lambda row, view, seed: row)
        streams = StageStreams([stream], encoder, micro_batch=4, workers=workers)
        for _ in range(2):
            (batch,) = streams.next_step()
            assert batch.until == "3"
            assert dict(zip(batch.row_ids, batch.views, strict=True)) == {"r0": 0, "r1": 1, "r2": 0, "r3": 1}
        streams.close()


def steps_of(streams, count):
    return [streams.next_step() for _ in range(count)]


def test_a_step_without_a_row_of_a_stream_has_no_batch_of_it(rows, encoder):
    """One general row among 20: most steps hold none, on every rank alike."""
    streams = StageStreams(
        mix([("task", rows[:20]), ("gere", rows[20:21])], per_step=3, seed=3, total=21), encoder, micro_batch=2
    )
    names = [[b.stream for b in streams.next_step()] for _ in range(7)]
    assert sum("gere" in step for step in names) == 1 and all("task" in step for step in names)


def test_clusters_stay_whole_where_they_fit():
    assert grouped([5, 3, 8, 2], [b"a", b"", b"a", b""]) == [[5, 8], [3], [2]]
    assert deal([[1], [2, 3, 4], [5, 6], [7, 8]], bins=2, size=4) == [[2, 3, 4, 1], [5, 6, 7, 8]]
    assert deal([[1, 2, 3], [4, 5, 6], [7, 8]], bins=2, size=4) == [[1, 2, 3, 7], [4, 5, 6, 8]]


@pytest.mark.parametrize("world", [1, 2])
def test_rows_of_one_picture_share_a_micro_batch(rows, encoder, world, tmp_path):
    """Four pictures with three rows each and four texts in a step of 16: four micro-batches, no picture in two of them."""
    names = [picture(tmp_path, name=f"{k}.png") for k in range(4)]
    given = [row(f"<image>\nq{k}", "yes", images=(names[k % 4],), root=tmp_path, id=f"p{k}") for k in range(12)]
    given += [row("q" * k, "no", id=f"t{k}") for k in range(1, 5)]
    every = []
    for rank in range(world):
        streams = [Stream("task", given, per_step=16, seed=1)]
        made = StageStreams(streams, encoder, micro_batch=4, rank=rank, world=world, packs=True)
        batches = made.next_step()
        assert len(batches) == 4 // world
        every += batches
    assert sorted(id for batch in every for id in batch.row_ids) == sorted(r.id for r in given)
    for name in names:
        assert sum(any(name in r.images for r in batch.rows) for batch in every) == 1


def test_the_probe_has_pictures(rows, encoder):
    assert [len(r.images) for r in stage(rows[1:], encoder).probe().rows] == [1, 1]
    assert StageStreams([], encoder, micro_batch=2).probe() is None
