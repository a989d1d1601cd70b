import torch

from mcit.core.schema import AdapterConfig, OptimConfig
from mcit.core.types import Batch, Counts, PoolSize, Row, Stage, Turn


def test_row_names_its_place_question_and_answer():
    turns = (Turn("user", "q1"), Turn("assistant", "a1"), Turn("user", "q2"), Turn("assistant", "a2"))
    row = Row("r7", (), turns, "t", "data.json:12")
    assert (row.where, row.question, row.answer) == ("data.json:12:r7", "q2", "a2")


def test_counts_normalise_by_tokens_or_rows_and_never_by_zero():
    counts = Counts({"task": 7}, {"task": 3})
    assert (counts.of("task", "tokens"), counts.of("task", "rows"), counts.of("other", "tokens")) == (7, 3, 1)


def test_answer_prompt_and_predicting_positions():
    """Prompt a b, answer c d, a turn e, answer f, one padding: c, d and f are predicted at b, c and e."""
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 0]])
    labels = torch.tensor([[-100, -100, 3, 4, -100, 6, -100]])
    batch = Batch("task", (), ids, labels, torch.tensor([[1] * 6 + [0]]), {}, 3)
    assert batch.answer_BT.int().tolist() == [[0, 0, 1, 1, 0, 1, 0]]
    assert batch.prompt_BT.int().tolist() == [[1, 1, 0, 0, 1, 0, 0]]
    assert batch.predicts_BT.int().tolist() == [[0, 1, 1, 0, 1, 0, 0]]


def test_stage_folder_sorts_by_position():
    stage = Stage(3, "gqa", (), (), AdapterConfig(), OptimConfig(), 1, 1, 1, 0)
    assert stage.folder == "03-gqa"


def test_positions_of_a_pool():
    """Rows of 10, 20 and 60 tokens: 9 rows are 9 * 30; cut at 30 tokens 9 * 20; supervised are 1, 2 and 3, so 9 * 2."""
    pool = PoolSize(9, ((10, 1), (20, 2), (60, 3)))
    assert (pool.positions(longest=99), pool.positions(longest=30)) == (270, 180)
    assert pool.positions(longest=99, supervised=True) == 18 and PoolSize(5, ()).positions(longest=9) == 0
