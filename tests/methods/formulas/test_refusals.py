from mcit.core.types import Row, Turn
from mcit.methods.formulas.refusals import REFUSALS, refused_row


def test_a_refusal_depends_on_seed_task_and_id_and_stands_for_every_answer():
    turns = (Turn("user", "a?"), Turn("assistant", "b")) * 2
    rows = [Row(str(n), (), turns, "t", "t.json:1") for n in range(40)]
    made = [refused_row(row, REFUSALS, 1) for row in rows]
    assert {row.answer for row in made} == set(REFUSALS) and made == [refused_row(row, REFUSALS, 1) for row in rows]
    assert made != [refused_row(row, REFUSALS, 2) for row in rows]
    assert [t.text for t in made[0].turns] == ["a?", made[0].answer] * 2
