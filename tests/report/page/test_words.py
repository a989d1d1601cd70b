"""Sentences on top of a report, from fake runs of known answers."""

import pytest

from mcit.report.matrix import measure
from mcit.report.page.words import cost, duration, falls, headline, others, quote
from mcit.report.tables import full_report

LONG = "It is a fine cat, I think it must be."


def two(fake_run, now, *, then=7, name="run"):
    """Task a right `then` times of ten after its stage; after the last one it answers `now`."""
    run = fake_run([["a"], ["b"]], name).shares(1, "a", then)
    return run.score(2, "a", now).shares(2, "b", 9)


def head(run):
    return headline(measure(run.root), "strict")


def test_form_and_content_by_hand(fake_run) -> None:
    """7 right, then 1: of the 6 that went wrong 5 are sentences (no names) and one another name: 83 %."""
    run = two(fake_run, ["cat"] + [LONG] * 5 + ["dog"] * 4)
    (fall,) = falls(measure(run.root), "strict")
    assert (fall.task, fall.then, fall.now, fall.wrong, fall.form, fall.points) == ("a", 70, 10, 6, 5, 60)
    assert head(run) == (
        "a lost 60.0 of 70.0 points; of the 6 answers that went wrong 83 % changed their form, the rest their content."
    )


def test_only_content_only_form_and_no_loss(fake_run) -> None:
    assert "all 7 answers that went wrong still have the right form" in head(two(fake_run, ["dog"] * 10))
    assert "all 7 answers that went wrong have another form" in head(two(fake_run, [LONG] * 10, name="other"))
    risen = head(two(fake_run, ["cat"] * 8 + ["dog"] * 2, name="third"))
    assert risen == "No task lost accuracy after it was learned; a went from 70.0 to 80.0."


def test_the_largest_loss_is_named_first(fake_run) -> None:
    run = fake_run([["a"], ["b"], ["c"]]).shares(1, "a", 5).shares(2, "b", 9)
    run.shares(3, "a", 4).shares(3, "b", 2).shares(3, "c", 9)
    assert [fall.task for fall in falls(measure(run.root), "strict")] == ["b", "a"]
    assert head(run).startswith("b lost 70.0 of 90.0 points")
    assert others(measure(run.root), "strict") == "Also lost: a 10.0 of 50.0 points (0 % form)."
    run.shares(3, "a", 6)
    assert others(measure(run.root), "strict") == ""  # a rose


def test_runs_without_scores_or_without_a_second_stage(fake_run) -> None:
    run = fake_run([["a"], ["b"]])
    assert head(run) == "Nothing has been scored yet."
    run.shares(1, "a", 5)
    assert "nothing is known of forgetting" in head(run)
    assert quote(full_report(run.root)).startswith("There is no final score to quote")
    assert cost(full_report(run.root)) == "No stage is committed yet."


def test_quote_and_cost(three) -> None:
    text = quote(full_report(three.root))
    assert text.startswith("Quote MFN 46.7, the mean over tasks at the end (95 % interval ")
    assert text.endswith("; scorer mode strict.")
    three.progress("01-s1", steps=40, tokens=1200, seconds=100.4, loss=0.25)
    assert cost(full_report(three.root)) == (
        "Training took 1 min 40 s: 40 steps over 1,200 tokens. 2 of 3 stages are still to come."
    )
    three.progress("02-s2", steps=40, tokens=1300, seconds=20, peak_bytes=1500 << 20)
    assert "80 steps over 2,500 tokens, at most 1,500 MiB of memory." in cost(full_report(three.root))


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.4, "42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (59.7, "1 min 00 s")]
)
def test_durations(seconds, text) -> None:
    assert duration(seconds) == text
