import pytest

from mcit.core.errors import DataError
from mcit.data.recipe import find_recipe, load_recipe
from mcit.data.transforms.leave_out import LeaveOut
from tests.fakes.rows import row

ROWS = [row("What?", "a", id=str(k)) for k in range(3)]


def test_rows_by_where_they_came_from_and_test_rows_stay():
    made = LeaveOut(LeaveOut.Config(rows=[ROWS[1].where]))
    assert list(made.apply(ROWS, seed=0)) == [ROWS[0], ROWS[2]] and list(made.elsewhere(ROWS)) == ROWS
    with pytest.raises(DataError, match="no training row is x:1:9"):
        LeaveOut(LeaveOut.Config(rows=["x:1:9"])).apply(ROWS, seed=0)


def test_behind_the_steps_of_a_recipe():
    recipe = load_recipe(find_recipe("tiny/word-forget")).followed_by("leave_out", rows=["a:1:b"])
    assert [type(step).__name__ for step in recipe.transforms] == ["Select", "LeaveOut"]
    assert recipe.config.transforms[-1] == {"use": "leave_out", "rows": ["a:1:b"]}
