"""Answers by each row's own adapter."""

import contextlib

from mcit.evals.pooled import PooledAnswerer
from tests.fakes.rows import row


class Pool:
    members = ["one", "two", "idle"]
    on = None

    def choose(self, rows):
        return ["two" if int(r.id) % 2 else "one" for r in rows]

    @contextlib.contextmanager
    def using(self, member):
        self.on = member
        yield
        self.on = None


def test_rows_of_a_member_are_answered_together_and_come_back_in_order():
    pool, asked = Pool(), []

    class Inner:
        def answer(self, rows, *, filters=(), device):
            asked.append((pool.on, [r.id for r in rows]))
            return [{"text": f"{r.id} by {pool.on}", "tokens": 1, "truncated": False} for r in rows]

    answers = PooledAnswerer(Inner(), pool).answer([row("q", "a", id=str(k)) for k in (3, 2, 5)], device="cpu")
    assert [(a["text"], a["member"]) for a in answers] == [
        ("3 by two", "two"),
        ("2 by one", "one"),
        ("5 by two", "two"),
    ]
    assert asked == [("one", ["2"]), ("two", ["3", "5"])] and pool.on is None
