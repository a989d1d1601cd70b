import pytest

from mcit.core.errors import StateError
from mcit.methods.formulas.memory import kept_of, recall, remember
from tests.fakes.steps import context, rows


def test_a_memory_remembers_and_recalls():
    first, second = rows("a", 10), rows("b", 3)
    kept = remember([], context(rows=first), count=4, draw="x")
    kept = remember(kept, context(rows=second), count=4, draw="x")
    assert [(task, len(ids)) for task, ids in kept] == [("a", 4), ("b", 3)]
    data = context(rows=first + second).data
    assert [row.id for row in recall(kept, data, where="m")] == [i for _, ids in kept for i in ids]
    assert kept_of([[task, ids] for task, ids in kept]) == kept
    assert remember([], context(rows=first), count=4, draw="y") != kept[:1], "each user draws its own"
    with pytest.raises(StateError, match="kept row 'a9' is no longer in task a"):
        recall([("a", ["a9"])], context(rows=rows("a", 9)).data, where="m")
