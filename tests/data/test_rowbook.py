from dataclasses import replace

import pytest

from mcit.core.errors import DataError
from mcit.data.rowbook import RowBook
from mcit.plan.plan import make_plan, parse_run
from tests.fakes.bench import TINY


def plan_of(*stages):
    config, problems = parse_run({**TINY, "stages": list(stages)})
    assert config is not None and not problems, problems
    return make_plan(config)


def test_a_stage_reads_its_own_and_earlier_tasks_and_what_it_forgets():
    forgets = {"recipe": "tiny/yesno", "forget": "tiny/word", "methods": [{"use": "gs_lora"}]}
    plan = plan_of({"recipe": "tiny/letter"}, forgets)
    book = RowBook(plan.tasks, plan.stages[1])
    rows = book.forget_rows()
    assert len(rows) == plan.forget_tasks[0].rows["train"] and {row.task for row in rows} == {"word"}
    assert {row.task for row in book.stage_rows()} == {"yesno"} and {row.task for row in book.rows("letter")} == {
        "letter"
    }
    assert not RowBook(plan.tasks, plan.stages[0]).forget_rows()
    with pytest.raises(DataError, match="none that a method of this or an earlier stage reads"):
        book.pool("tiny/letter")
    with pytest.raises(DataError, match="'word' is not in this or an earlier stage"):
        book.rows("word")


def test_rows_beside_those_to_forget(tmp_path):
    """Alternates and harmless pictures come in the order of the rows to forget; holdout rows are those of its recipes."""
    beside = {"alternate": "tiny/word-alternate", "holdout": "tiny/word-holdout"}
    forgets = {"recipe": "tiny/yesno", "forget": "tiny/word-forget", "methods": [{"use": "gs_lora"}], **beside}
    plan = plan_of({"recipe": "tiny/letter"}, forgets)
    book = RowBook(plan.tasks, plan.stages[1])
    rows, others = book.forget_rows(), book.alternate_rows()
    assert [r.id for r in others] == [r.id for r in rows] and {r.answer for r in others} == {"violet"}
    assert len(book.holdout_rows()) == plan.stages[1].holdout[0].rows["train"] > 5
    with pytest.raises(DataError, match="no harmless picture"):
        book.decouple_rows()


RETAINS = {"recipe": "tiny/word-retain", "forget": "tiny/word-forget", "methods": [{"use": "npo"}]}


def test_kept_rows_that_a_stage_forgets_are_none_to_replay():
    """In the forget stage and after it, until their task is trained again; deleted data are an error unless they are out."""
    plan = plan_of(
        {"recipe": "tiny/word"}, RETAINS, {"recipe": "tiny/yesno"}, {"recipe": "tiny/word"}, {"recipe": "tiny/letter"}
    )
    first, forgets, third, *_ = plan.stages
    tasks = plan.tasks
    rows = list(RowBook(tasks, first).stage_rows())
    red = [row for row in rows if row.answer == "red"]
    assert 20 < len(red) < len(rows)

    def left(count, **known):
        return RowBook(tasks, plan.stages[count - 1], plan.stages[: count - 1]).without_forgotten(rows, **known)

    assert left(1) == rows and left(5) == rows, "not forgotten yet; learned again"
    assert left(2) == left(3) == [row for row in rows if row.answer != "red"]
    assert left(3, known=[forgets.folder]) == rows, "its rows are out already"
    gone = replace(forgets, forget=tuple(replace(task, gone=True) for task in forgets.forget))
    book = RowBook(tasks, third, (first, gone))
    with pytest.raises(DataError, match="forgot is not known: its data were deleted") as caught:
        book.without_forgotten(rows)
    assert caught.value.problems[0].fix.endswith("mcit run CONFIG --from RUN --stage 2")
    assert book.without_forgotten(rows, known=[forgets.folder]) == rows and book.without_forgotten([]) == []
