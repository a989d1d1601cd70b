"""What rows have in common, in small counts."""

from mcit.data.tally import LONG_ANSWER, Tally, cue_differs, long_answers, one_sided, unexpected
from tests.fakes.rows import row


def tally(*rows):
    found = Tally()
    for one in rows:
        found.add(one)
    return found


def asked(cue, count, first=0):
    return [row(f"Question {k}?" + (f"\n{cue}" if cue else ""), "a", style="word") for k in range(first, first + count)]


def test_answers_that_outweigh_the_others():
    rows = [row("q", "Yes" if k else "no", style="yes_no") for k in range(10)]
    (problem,) = one_sided(tally(*rows))
    assert "90 % of the yes_no answers are 'yes'" in problem.what
    assert not one_sided(tally(*rows[:9])) and not one_sided(tally(*[row("q", "yes", style="word")] * 20))
    found = tally(*rows)
    for one in rows[1:6]:
        found.remove(one)
    assert not one_sided(found)


def test_long_answers_are_said_once_for_a_style():
    long = [row("q", "x" * (LONG_ANSWER + k), id=f"r{k}", style="word") for k in range(1, 4)]
    (problem,) = long_answers(tally(row("q", "a", style="word"), *long, row("q", "x" * 2_000, style="text")))
    assert "1001 characters in style 'word'; so long are 3 answers" in problem.what and problem.where.endswith("r1")
    found = tally(long[0])
    found.remove(long[0])
    assert not long_answers(found)


def test_the_cue_of_most_questions():
    short, other = asked("Answer with one word.", 10), asked("Say it shortly.", 10, 100)
    assert tally(*short, *other[:3]).cue == "Answer with one word." and tally(*short, *other).cue == ""
    assert tally(row("q\nA. red", "a"), row("q\nA. red", "a")).cue == ""  # an option


def differs(train, test):
    return cue_differs(tally(*train), tally(*test), {"train": train, "test": test})


def test_another_cue_at_test():
    short, other = asked("Answer with one word.", 10), asked("Say it shortly.", 10, 100)
    (problem,) = differs(short, other)
    assert "most questions of train end with 'Answer with one word.', and 0 % of those of test" in problem.what
    assert not differs(asked("Which one?", 1), asked("", 9))  # a single row shares nothing
    (problem,) = differs(asked("", 9), short)
    assert problem.where == "train" and not differs(short, []) and not differs(short, short)


def test_a_cue_that_was_trained_beside_others_is_no_alarm():
    """Diversified rows: the test's own cue is one of several in training; or it stands inside the questions."""
    mixed = [*asked("Answer with one word.", 4), *asked("Answer yes or no.", 8, 50), *asked("Explain.", 8, 90)]
    assert not differs(mixed, asked("Answer with one word.", 5)) and differs(mixed, asked("Say it shortly.", 5))
    inside = [row(f"Say it shortly. What is {k}?\nA. red", "a") for k in range(20)]
    assert not differs(inside, asked("Say it shortly.", 5))


def test_counts_stay_small():
    found = tally(*(row(f"q\nlast line {k}", "a") for k in range(5_000)), *asked("The cue.", 6_000))
    assert len(found.cues) <= 2_001 and found.cue == "The cue."


def test_expected_rows():
    assert not unexpected("train", 12_726, 12_726) and not unexpected("train", 38_000, 40_000)
    for rows, number in ((12_725, 12_726), (34_000, 40_000), (2_999, 3_001)):
        (problem,) = unexpected("train", rows, number)
        assert f"has {rows} rows, the recipe expects {number}" in problem.what and problem.fix
