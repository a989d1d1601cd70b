import pytest

from mcit.core.errors import StateError
from mcit.report.compare import comparison, render

TWO = [["kind"], ["edible"]]


@pytest.fixture
def pair(fake_run):
    """b forgets less: kind 2 -> 9 of ten, edible 8 -> 8."""
    a = fake_run(TWO, "plain").shares(1, "kind", 9).shares(2, "kind", 2).shares(2, "edible", 8)
    methods = {"stages": [{"recipe": n, "methods": [{"name": "replay"}]} for n in ("s1", "s2")]}
    b = fake_run(TWO, "replay", config=methods, plan={"sources": {"method replay": "d" * 64}})
    b.shares(1, "kind", 9).shares(2, "kind", 9).shares(2, "edible", 8)
    return a.root, b.root


def test_words_say_what_differs_and_what_it_did(pair):
    words = comparison(*pair)["words"]
    assert words[0] == "Settings differ: method replay (every stage): off -> on."
    assert words[1] == "The same in both: sequence, data, base, code, versions, hardware, seeds, layout."
    assert words[2].startswith("Higher in replay: kind 20.0 -> 90.0 (+70.0, +")
    assert words[3] == "Not to be told apart in replay: edible 80.0 -> 80.0 (+0.0, +0.0 to +0.0)."
    assert words[4].startswith("MFN 50.0 -> 85.0, +35.0 points, +")
    assert words[5].startswith("Forgetting 70.0 -> 0.0, -70.0 points")
    assert "spread of seeds" in words[6] and len(words) == 7  # a method and its code are one cause


def test_the_other_way_round_it_fell(pair):
    assert any(word.startswith("Lower in plain: kind 90.0 -> 20.0 (-70.0") for word in comparison(*pair[::-1])["words"])


def test_several_causes_are_not_told_apart(fake_run):
    a = fake_run(TWO, "a").shares(2, "kind", 5)
    b = fake_run(TWO, "b", config={"seed": 3}, plan={"code": "9"}).shares(2, "kind", 5)
    assert "2 things differ" in comparison(a.root, b.root)["words"][-1]


def test_runs_with_other_tasks_and_without_any_score(fake_run):
    a = fake_run([["kind"]], "a").shares(1, "kind", 5)
    b, empty = fake_run([["naming"]], "b").shares(1, "naming", 5), fake_run([["kind"]], "empty")
    words = "\n".join(comparison(a.root, b.root)["words"])
    assert "alone: kind" in words and "alone: naming" in words and "MFN" not in words
    found = comparison(a.root, empty.root)
    assert any("empty has no score" in word for word in found["words"])
    assert found["tasks"] == [{"task": "kind", "scores": [50.0, None], "difference": None, "span": None}]


def test_a_folder_that_is_no_run(pair, tmp_path):
    with pytest.raises(StateError, match="not a run folder"):
        comparison(pair[0], tmp_path)


def test_the_table_has_both_conventions_a_ratio_with_two_digits_and_no_row_of_dashes(pair):
    names, before, after = (list(column.cells) for column in render(comparison(*pair))[0].columns[:3])
    assert names == ["kind", "edible", "MFT", "MFN", "MAA", "BWT / T", "BWT / (T-1)", "Forgetting", "Retention"]
    assert (before[-1], after[-1]) == ("0.59", "1.00")  # 50 of 85, 85 of 85
