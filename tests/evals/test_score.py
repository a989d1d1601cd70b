"""Score of a list of predictions."""

import json
import subprocess
import sys

import pytest

from mcit.core.errors import StateError
from mcit.evals.score import kappa, read_rows, read_score, score_predictions, write_score

EXTRA = {"task": "t", "filters": [], "lineage": "l", "settings": "s"}


def made(texts: list[str], answers: list[str], **gold) -> list[dict]:
    return [
        {
            "id": f"q{i}",
            "index": i,
            "text": text,
            "tokens": i + 1,
            "truncated": i == 0,
            "question": "what?",
            "gold": {"answer": answer, "style": "", **gold},
        }
        for i, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]


def test_hand_worked() -> None:
    """Gold B A B B, answers B, B., A., B. with A to B offered.

    Strict: only the bare letters are right: 2 of 4. Fixed reads B, B, A, B against B, A, B, B: 2 of 4 too.
    Valid: B, B., A., B: all four. Best constant: B, 3 of 4 = 75 %. Kappa (50 - 75)/25 = -1. Lenient = fixed = 50.
    Truncated 1 of 4, mean length (1+2+3+4)/4 = 2.5.
    """
    score = score_predictions(
        made(["B", "B.", "A.", "B"], list("BABB"), choices=["x", "y"]), scorer="choice", style="letter"
    ).score
    assert score["n"] == 4
    assert score["strict"]["accuracy"] == score["fixed"]["accuracy"] == 50.0
    assert score["format_validity"] == 100.0
    assert score["strict"]["constant"] == 75.0
    assert score["strict"]["constant_answer"] == "B"
    assert score["strict"]["kappa"] == pytest.approx(-1.0)
    assert score["truncation_rate"] == 25.0
    assert score["mean_length"] == 2.5
    assert score["lenient_minus_strict"] == 0.0
    assert score["scorer"] == {"name": "choice", "version": 3, "strict_rule": "SEFE eval_science_qa.py"}


def test_accuracy_on_valid_answers_and_the_gap() -> None:
    """Gold red x4; answers red, blue, It is red., green: strict 25 %. Valid names: red, blue, green: 1 of 3 right.
    Lenient also finds red in the sentence: 50 %, so the gap is 25 points."""
    predictions = made(["red", "blue", "It is red.", "green"], ["red"] * 4)
    score = score_predictions(predictions, scorer="exact", style="name").score
    assert score["strict"]["accuracy"] == 25.0
    assert score["format_validity"] == 75.0
    assert score["strict"]["accuracy_on_valid"] == pytest.approx(100 / 3)
    assert score["lenient"] == 50.0
    assert score["lenient_minus_strict"] == 25.0
    assert score["strict"]["kappa"] is None  # the constant "red" is always right


def test_no_valid_answer_is_none_not_zero() -> None:
    score = score_predictions(made(["", ""], ["a cat", "dog"]), scorer="exact", style="name").score
    assert score["format_validity"] == 0.0
    assert score["strict"]["accuracy_on_valid"] is None


def test_rows_carry_their_own_style() -> None:
    predictions = made(["yes", "yes"], ["yes", "red"])
    predictions[0]["gold"]["style"] = "yes_no"
    scored = score_predictions(predictions, scorer="exact", style="name")
    assert scored.rows["valid"] == [1.0, 0.0]
    predictions[0]["gold"]["style"] = "house style"  # a label of the data set's own: the task's style holds
    assert score_predictions(predictions, scorer="exact", style="name").rows["valid"] == [0.0, 0.0]


def test_question_reaches_the_scorer() -> None:
    predictions = made(["texas,ohio"], ["ohio,texas,utah"])
    predictions[0]["question"] = "Which states?"
    score = score_predictions(predictions, scorer="mapqa", style="text").score
    assert score["strict"]["accuracy"] == pytest.approx(200 / 3)


def test_modes_have_their_own_constant() -> None:
    """Gold 2, two, 3: strict best constant 1 of 3, fixed joins 2 and two: 2 of 3."""
    score = score_predictions(made(["3", "3", "3"], ["2", "two", "3"]), scorer="exact", style="word").score
    assert score["strict"]["constant"] == pytest.approx(100 / 3)
    assert score["fixed"]["constant"] == pytest.approx(200 / 3)


def test_kappa() -> None:
    """(80 - 60)/(100 - 60) = 0.5; undefined against a perfect constant."""
    assert kappa(80, 60) == pytest.approx(0.5)
    assert kappa(100, 100) is None
    assert kappa(99.75, 99.5) == pytest.approx(0.5)  # (99.75 - 99.5)/(100 - 99.5): nearly perfect is not perfect


def test_constant_that_is_never_right() -> None:
    """Gold letter F of two choices A and B: even the constant F is wrong, so the best constant answer is none at all,
    worth 0 %, and nothing is taken off the accuracy: kappa (0 - 0)/100 = 0."""
    part = score_predictions(made(["A"], ["F"], choices=["x", "y"]), scorer="choice", style="letter").score["strict"]
    assert (part["constant"], part["constant_answer"], part["kappa"]) == (0.0, "", 0.0)


def test_first_of_equally_good_constants_is_told() -> None:
    """Gold a and b, one each: either is right in half of the rows, and a stands first."""
    part = score_predictions(made(["a", "a"], ["a", "b"]), scorer="exact", style="word").score["strict"]
    assert (part["constant"], part["constant_answer"]) == (50.0, "a")


def test_interval_holds_the_accuracy() -> None:
    score = score_predictions(made(["a", "b"] * 30, ["a"] * 60), scorer="exact", style="word").score
    low, high = score["strict"]["interval"]
    assert 30 < low < 50 < high < 70
    assert score["format_validity_interval"] == [100.0, 100.0]


def test_pure_and_deterministic() -> None:
    predictions = made(["a", "b", "c"], ["a", "a", "c"])
    before = json.dumps(predictions)
    one = score_predictions(predictions, scorer="exact", style="word")
    assert one == score_predictions(predictions, scorer="exact", style="word")
    assert json.dumps(predictions) == before


def test_nothing_to_score() -> None:
    with pytest.raises(StateError, match="nothing to score"):
        score_predictions([], scorer="exact", style="word")


def test_written_score_comes_back_and_damage_shows(tmp_path) -> None:
    scored = score_predictions(made(["a"], ["a"]), scorer="exact", style="word", extra={**EXTRA, "lineage": "abc"})
    assert read_score(tmp_path) is None
    assert read_rows(tmp_path) is None
    write_score(tmp_path, scored)
    assert read_score(tmp_path)["lineage"] == "abc"
    assert read_rows(tmp_path) == scored.rows
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(StateError, match="is not what score.json was made from") as error:
        read_rows(tmp_path)
    assert error.value.where == str(tmp_path / "rows.json") and "--rescore" in error.value.fix
    (tmp_path / "rows.json").unlink()
    with pytest.raises(StateError, match="missing"):
        read_rows(tmp_path)
    (tmp_path / "score.json").write_text('{"n": ')
    for read in (read_score, read_rows):
        with pytest.raises(StateError, match="not valid JSON"):
            read(tmp_path)


@pytest.mark.parametrize("key", ["accuracy", "n", "rows_sha256", "settings", "seal"])
def test_an_edited_or_damaged_score_is_refused(tmp_path, key) -> None:
    scored = score_predictions(made(["a"], ["a"]), scorer="exact", style="word", extra=EXTRA)
    write_score(tmp_path, scored)
    path = tmp_path / "score.json"
    text = path.read_text()
    for edited in (text.replace(f'"{key}"', f'"{key}x"', 1), text.replace(f'"{key}": ', f'"{key}": 1', 1)):
        assert edited != text
        path.write_text(edited)
        with pytest.raises(StateError) as error:
            read_score(tmp_path)
        assert error.value.where == str(path)


def test_a_score_that_lacks_something_is_not_written(tmp_path) -> None:
    scored = score_predictions(made(["a"], ["a"]), scorer="exact", style="word")
    with pytest.raises(StateError, match="is not a score: task"):
        write_score(tmp_path, scored)
    assert not list(tmp_path.iterdir())


def test_scoring_imports_no_torch() -> None:
    code = (
        "import sys; from mcit.evals.score import score_predictions as s; "
        "s([{'id': 'a', 'index': 0, 'text': 'x', 'tokens': 1, 'truncated': False, 'question': 'q', "
        "'gold': {'answer': 'x'}}], scorer='vqa', style='word'); "
        "import mcit.evals.evaluate; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
