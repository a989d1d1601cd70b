"""Ranks as threads of one process: what travels goes through JSON as between processes, and nobody waits for ever."""

import json
import threading

from mcit.core.files import canonical_json

_WAIT_S = 30


class Group:
    """The meeting point of a number of ranks."""

    def __init__(self, size):
        self.size = size
        self.slots = [None] * size
        self.barrier = threading.Barrier(size)


class ThreadRanks:
    """One rank of a group, as `mcit.core.ranks.Ranks`."""

    def __init__(self, group, rank):
        self._group, self._rank = group, rank
        self.collectives = 0

    def rank(self):
        return self._rank

    def size(self):
        return self._group.size

    def barrier(self):
        self.gather_objects(None)

    def broadcast_object(self, obj, source=0):
        return self.gather_objects(obj)[source]

    def gather_objects(self, obj):
        self.collectives += 1
        self._group.slots[self._rank] = canonical_json(obj)
        self._group.barrier.wait(_WAIT_S)
        found = [json.loads(slot) for slot in self._group.slots]
        self._group.barrier.wait(_WAIT_S)
        return found


def on_ranks(size, work):
    """Run `work(ranks)` on every rank; returns results in rank order, an exception being the result of its rank."""
    group = Group(size)
    results = [None] * size

    def one(rank):
        try:
            results[rank] = work(ThreadRanks(group, rank))
        except BaseException as error:
            results[rank] = error
            if not isinstance(error, Exception):
                group.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
