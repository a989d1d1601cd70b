"""Quota, balance, exclusions, shortfalls and traces, on small data sets of every kind."""

import json
from collections import Counter

import pytest

from mcit.core.errors import DataError
from mcit.data.asd.answers import load_answers
from mcit.data.asd.cues import CUES, LIMITS
from mcit.data.asd.diversify import choose, diversify
from mcit.data.asd.exchange import source_of
from tests.fakes.rows import row


def letters(count):
    """ScienceQA-like rows, text only: four options, the second is right."""
    return [
        row(f"Which is {k}?\nA. w{k}\nB. right{k}\nC. x{k}\nD. y{k}\n{CUES['mcq']}", "B", id=f"r{k}", style="letter")
        for k in range(count)
    ]


def names(count, **fields):
    """ImageNet-like rows of twenty classes."""
    return [
        row(f"What is it?\n{CUES['short']}", f"class{k % 20}", id=f"r{k}", style="name", **fields) for k in range(count)
    ]


def made(rows, *, percent=20, seed=0, answers=None, unit="row", **settings):
    choice = choose(rows, percent=percent, seed=seed, unit=unit, **settings)
    out, account = diversify(rows, choice, seed=seed, unit=unit, answers=answers, limits=LIMITS)
    return out, account, choice


def answer_file(tmp_path, jobs, text="The answer is {0}, because that is what the picture plainly shows."):
    lines = []
    for job in jobs:
        wrong = {"yn": 1, "mcq": 3}.get(job.style, 0)
        content = [
            {"distractors": [f"wrong{n}" for n in range(wrong)], "text": "" if wrong else text.format(part.answer)}
            for part in job.exchanges
        ]
        lines.append(
            {
                "id": job.row.id,
                "style": job.style,
                "source": source_of(job.row),
                "status": "accepted",
                "content": content,
                "generator": {"backend": "openai", "model": "m", "prompt": 1, "attempt": 2},
            }
        )
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_answers(path)


@pytest.mark.parametrize("total, native", [(1000, 800), (1003, 803)])
def test_card_quota(tmp_path, total, native):
    """O14. N=1000, X=20: floor(1000*20/400) = 50 per foreign style, 800 native; `yn` 25 Yes + 25 No. N=1003: 50, 803."""
    rows = letters(total)
    _, _, choice = made(rows)
    out, account, _ = made(rows, answers=answer_file(tmp_path, [j for j in choice.jobs if j.content is None], LONG))
    counts = Counter(r.style for r in out)
    assert len(out) == total and counts.pop("letter") == native == account["native_rows"]
    assert counts == {"yn": 50, "short": 50, "brief": 50, "detail": 50}
    assert Counter(r.answer for r in out if r.style == "yn") == {"Yes": 25, "No": 25}
    assert account["styles"]["yn"]["answers"] == {"Yes": 25, "No": 25}
    assert all(item["short_by"] == 0 for item in account["styles"].values())


LONG = "The answer is {0}: " + "it can be told from the picture by its form, " * 3 + "and no other option fits as well."


def test_native_rows_are_the_very_same_and_order_stays():
    rows = names(100)
    out, _, choice = made(rows)
    changed = {job.index for job in choice.jobs if job.content is not None}
    assert [r.id for r in out] == [r.id for r in rows]
    assert all((new is old) == (k not in changed) for k, (new, old) in enumerate(zip(out, rows, strict=True)))


def test_letters_are_balanced():
    """100 rows at X=40: floor(100*40/400) = 10 mcq rows; letters 3, 3, 2, 2."""
    out, account, _ = made(names(100), percent=40, cells="classes")
    assert account["styles"]["mcq"]["answers"] == {"A": 3, "B": 3, "C": 2, "D": 2}
    for converted in (r for r in out if r.style == "mcq"):
        assert len(set(converted.meta["choices"])) == 4
        source = next(r for r in names(100) if r.id == converted.id)
        assert converted.meta["choices"]["ABCD".index(converted.answer)] == source.answer


def test_trace_of_a_row():
    rows = names(100, meta={"answers": ["x"], "class": "c"})
    out, _, _ = made(rows, seed=7, cells="classes")
    (first, *_) = [r for r in out if r.style == "yn"]
    assert first.meta["asd"] == {
        "style": "yn",
        "native_style": "short",
        "src_id": first.id,
        "seed": 7,
        "generator": "rule:classes",
    }
    assert first.meta["class"] == "c" and "answers" not in first.meta


def test_same_seed_same_rows_other_seed_others():
    first, again, other = (made(names(200), seed=s, cells="classes")[0] for s in (0, 0, 1))
    assert first == again != other


def test_without_a_model_its_cells_fall_short_and_nothing_is_refilled():
    out, account, _ = made(letters(100))
    assert Counter(r.style for r in out) == {"letter": 90, "yn": 5, "short": 5}
    for style in ("brief", "detail"):
        item = account["styles"][style]
        assert item == {"rows": 0, "questions": 0, "short_by": 5, "reasons": {"no answer of a model": 5}}


def test_the_choice_does_not_depend_on_the_answers(tmp_path):
    rows = letters(100)
    without, _, choice = made(rows)
    open_jobs = [j for j in choice.jobs if j.content is None]
    out, account, _ = made(rows, answers=answer_file(tmp_path, open_jobs[:7]))
    assert [r.id for r in out if r.style in ("yn", "short")] == [r.id for r in without if r.style in ("yn", "short")]
    assert account["styles"]["brief"]["rows"] == 5 and account["styles"]["detail"]["short_by"] == 5
    assert account["styles"]["detail"]["reasons"] == {"no answer of a model": 3, "not 25 to 90 words long": 2}
    brief = next(r for r in out if r.style == "brief")
    assert brief.meta["asd"]["generator"] == "openai:m:prompt-1:attempt-2" and "right" in brief.answer
    assert account["answers"] == {"file": "answers.jsonl", "torn_lines": 0}


def test_yes_no_rows_stay_out_of_yes_no_and_choice():
    """Of 100 rows 90 answer yes or no: 10 are left for yn and mcq, which want 5 each at X=20."""
    rows = [row("Is it?", "Yes." if k % 2 else "no", id=f"r{k}", style="word") for k in range(90)]
    rows += [row("What?", f"thing{k}", id=f"w{k}", style="word") for k in range(7)]
    _, account, choice = made(rows, native="short")
    chosen = {(job.style, job.row.id[0]) for job in choice.jobs}
    assert ("yn", "r") not in chosen and ("mcq", "r") not in chosen and ("brief", "r") in chosen
    # 97 rows: floor(97*20/400) = 4 each; 7 eligible rows give yn 4 and mcq 3
    assert account["quota"] == 4 and sum(j.style == "mcq" for j in choice.jobs) == 3
    assert account["styles"]["mcq"]["reasons"]["too few rows allow the style"] == 1


def test_grounding(tmp_path):
    rows = [
        row(
            f"<image>\nWhere is thing {k}?",
            f"[0.{k % 5 + 1}0, 0.10, 0.{k % 5 + 3}5, 0.50]",
            images=("a",),
            id=f"r{k}",
            style="box",
        )
        for k in range(100)
    ]
    _, account, choice = made(rows)
    assert account["cells"] == "boxes" and account["native"] == "short"
    out, account, _ = made(rows, answers=answer_file(tmp_path, [j for j in choice.jobs if j.content is None], LONG))
    assert Counter(r.style for r in out) == {"box": 80, "yn": 5, "mcq": 5, "brief": 5, "detail": 5}
    brief = next(r for r in out if r.style == "detail")
    assert "What is shown in the region [0." in brief.question and "Where" not in brief.question


def test_questions_as_unit():
    """50 rows of 2 questions: 100 questions, floor(100*20/400) = 5 per style, so two rows (4 questions) fit."""
    rows = [row("One?", f"a{k % 9}", "Two?", f"b{k % 9}", id=f"r{k}", style="word") for k in range(50)]
    _, account, choice = made(rows, unit="question", cells="classes")
    assert account["quota"] == 5 and Counter(j.style for j in choice.jobs)["yn"] == 2
    assert account["styles"]["yn"] == {
        "rows": 2,
        "questions": 4,
        "short_by": 1,
        "reasons": {"too few rows allow the style, or their questions do not add up": 1},
        "answers": {"Yes": 2, "No": 2},
    }


def test_rows_that_cannot_be_taken_apart_stay_and_are_counted():
    rows = [*letters(40), row("no options here", "B", id="odd", style="letter")]
    out, account, _ = made(rows, percent=90)
    assert out[-1] is rows[-1] and account["unusable"] == {"no options found in the question": 1}


@pytest.mark.parametrize(
    "rows, message",
    [
        ([row("q", "a", style="text")], "does not follow"),
        ([row("q", "a", style="word"), row("q", "b", style="letter")], "does not follow"),
        ([row("q", "a", style="word", meta={"asd": {}})], "diversified already"),
    ],
)
def test_rows_that_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        made(rows)


def test_answers_to_other_rows_are_refused(tmp_path):
    rows = letters(100)
    _, _, choice = made(rows)
    answers = answer_file(tmp_path, [j for j in choice.jobs if j.content is None])
    changed = [row(r.turns[0].text.replace("Which", "What"), "B", id=r.id, style="letter") for r in rows]
    with pytest.raises(DataError, match="10 answer.s. were written for other versions of the rows"):
        made(changed, answers=answers)


def test_incomplete_answers_are_not_used(tmp_path):
    rows = [row("What?", f"thing{k}", id=f"r{k}", style="word") for k in range(100)]
    _, _, choice = made(rows)
    answers = answer_file(tmp_path, choice.jobs)
    text = answers.path.read_text().replace('"wrong0", "wrong1", "wrong2"', '"wrong0"')
    answers.path.write_text(text)
    _, account, _ = made(rows, answers=load_answers(answers.path))
    assert account["styles"]["mcq"]["reasons"] == {"the answer of the model is not complete": 5}
    assert account["styles"]["yn"]["short_by"] == 0


def test_refusals_are_the_reason_of_a_shortfall(tmp_path):
    rows = letters(100)
    _, _, choice = made(rows)
    answers = answer_file(tmp_path, [j for j in choice.jobs if j.style == "brief"])
    text = answers.path.read_text().replace('"accepted"', '"refused", "reasons": ["does not name the answer", "x"]')
    answers.path.write_text(text)
    _, account, _ = made(rows, answers=load_answers(answers.path))
    assert account["styles"]["brief"]["reasons"] == {"refused: does not name the answer": 5}
