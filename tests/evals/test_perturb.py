from dataclasses import replace

from mcit.evals.perturb import answered, truth_of
from tests.fakes.rows import row

ROW = row("Which animal?", "penguin", id="r")


def test_made_from_other_entities_and_marked():
    pool = ["cat", "Penguin", "dog", "owl", "penguin", "cat"]
    found = truth_of(ROW, pool, count=2, seed=3)
    assert len(found.perturbed) == 2 and set(found.perturbed) <= {"cat", "dog", "owl"}
    assert found.made and found.own and found.paraphrased == "penguin"
    assert truth_of(ROW, reversed(pool), count=2, seed=3) == found
    assert truth_of(ROW, ["penguin"], count=2, seed=3).perturbed == ()
    assert set(truth_of(ROW, pool, count=9, seed=0).perturbed) == {"cat", "dog", "owl"}


def test_the_datas_own_come_first():
    given = replace(ROW, meta={"perturbed": ["a seal"], "paraphrased": "a bird of the Antarctic"})
    found = truth_of(given, ["cat"], count=3, seed=0)
    assert found.perturbed == ("a seal",) and found.paraphrased == "a bird of the Antarctic"
    assert not found.made and not found.own
    accepted = replace(ROW, meta={"answers": ["penguin", "an emperor penguin"]})
    found = truth_of(accepted, ["An Emperor Penguin", "cat"], count=3, seed=0)
    assert found.paraphrased == "an emperor penguin" and found.perturbed == ("cat",)


def test_a_row_with_another_answer_says_so():
    other = answered(ROW, "cat", "wrong0")
    assert other.answer == "cat" and other.question == ROW.question and other.id == "r#wrong0"
