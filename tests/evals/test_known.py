"""Names of scorers and styles, looked up and not imported."""

from mcit.evals.known import unknown_scorer, unknown_style


def test_names_that_exist_are_no_problem_and_others_have_a_place_and_a_suggestion():
    assert unknown_scorer("exact", "r") == unknown_style("word", "r") == unknown_style("", "r") == []
    (scorer,), (style,) = unknown_scorer("exakt", "some/recipe"), unknown_style("wrod", "some/recipe")
    assert (scorer.where, style.where) == ("some/recipe: eval.scorer", "some/recipe: eval.style")
    assert "exact" in scorer.fix and "word" in style.fix
