from mcit.core.schema import AdapterConfig, OptimConfig
from mcit.core.types import Counts, Row, Stage, Turn


def test_row_names_its_place_question_and_answer():
    turns = (Turn("user", "q1"), Turn("assistant", "a1"), Turn("user", "q2"), Turn("assistant", "a2"))
    row = Row("r7", (), turns, "t", "data.json:12")
    assert (row.where, row.question, row.answer) == ("data.json:12:r7", "q2", "a2")


def test_counts_normalise_by_tokens_or_rows_and_never_by_zero():
    counts = Counts({"task": 7}, {"task": 3})
    assert (counts.of("task", "tokens"), counts.of("task", "rows"), counts.of("other", "tokens")) == (7, 3, 1)


def test_stage_folder_sorts_by_position():
    stage = Stage(3, "gqa", (), (), AdapterConfig(), OptimConfig(), 1, 1, 1, 0)
    assert stage.folder == "03-gqa"
