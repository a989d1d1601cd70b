"""Groups of instructions."""

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from mcit.core.files import read_json
from mcit.core.types import Row, Turn
from mcit.routers.codebook import Codebook, group_score, instruction_of, pair_score
from tests.fakes.bench import run_plan
from tests.train.test_routing import pool_plan

SHORT, LETTER = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the choices directly.",
)


def data(*questions, seed=1):
    rows = [Row(f"r{k}", (), (Turn("user", q), Turn("assistant", "a")), "t", "t:1") for k, q in enumerate(questions)]
    return SimpleNamespace(stage_rows=lambda: rows, seed=seed)


def learned(*stages, **settings):
    """A router after stages with these questions, each in a group of its own."""
    router = Codebook(Codebook.Config(**settings))
    for k, questions in enumerate(stages, start=1):
        router.learn(f"{k:02d}", SimpleNamespace(data=data(*questions)))
    return router


def routed(router, *questions):
    rows = [{"question": q} for q in questions]
    return Codebook.route(rows, list(router.state_dict()["codebook"]), router.state_dict(), {}, None)


def test_scores_of_pairs_by_hand():
    """Equal 1, nothing in common 0; two of three words shared: 2 / (2 + (ln 1.5 + 1)^2) = 0.503103."""
    assert pair_score("answer question word", "answer question word") == 1
    assert pair_score("answer question", "classify picture") == 0
    assert pair_score("answer question word", "answer question phrase") == pytest.approx(0.503103, abs=1e-6)
    assert pair_score("what is this", "who was that") == 0 and pair_score("is this", "is this") == 1


def test_the_score_of_a_group_is_the_mean_over_all_pairs():
    own, strings = ["answer question word", "classify picture"], ["answer question phrase"]
    assert group_score(own, strings) == pytest.approx(0.503103 / 2, abs=1e-6) and group_score([], strings) == 0


QUESTIONS = [
    ("last_line", f"<image>\nWhat is it?\n{SHORT}", SHORT),
    ("second_line", "What is the object?\nAnswer with a class name.\nA. cat", "Answer with a class name."),
    ("second_line", "What is it?\nAnswer briefly.", "Answer briefly."),
    ("second_line", "One line", "One line"),
    ("before_colon", "Locate the region: a red cup", "Locate the region"),
    ("last_line", "<image>", ""),
]


@pytest.mark.parametrize(("part", "text", "found"), QUESTIONS)
def test_the_instruction_of_a_question(part, text, found):
    assert instruction_of(text, part) == found


@pytest.mark.parametrize(("part", "text", "found"), QUESTIONS)
def test_what_is_exported_takes_the_same_part_of_a_question(part, text, found):
    router = learned([text], ["another: thing\naltogether: new"], instruction=part, threshold=0.99)
    assert router.state_dict()["codebook"]["01"] == [found]
    assert routed(router, text) == ["01"]


def test_a_stage_continues_the_group_most_like_it_or_begins_one():
    router = learned([f"Q1\n{SHORT}", f"Q2\n{SHORT}"], [f"Q3\n{LETTER}"])
    assert router.join(["01", "02"], data(f"Another?\n{SHORT}")) == "01"
    assert router.join(["01", "02"], data(f"Another?\n{LETTER}")) == "02"
    assert router.join(["01", "02"], data("Give the box of the region this sentence describes.")) is None
    near = data("x\nAnswer the question using a short phrase.")
    assert router.join(["01", "02"], near) is None
    assert learned([f"Q\n{SHORT}"], threshold=0.3).join(["01"], near) == "01"


def test_new_strings_join_the_codebook_once():
    router = learned([f"Q1\n{SHORT}", f"Q2\n{SHORT}"])
    router.learn("01", SimpleNamespace(data=data("Q\nUse one word.", f"Q\n{SHORT}")))
    assert router.state_dict()["codebook"] == {"01": [SHORT, "Use one word."]}
    many = learned([f"Q\nInstruction number {k} of many" for k in range(99)], most=5)
    assert len(many.state_dict()["codebook"]["01"]) == 5


def test_settings_and_their_bounds():
    config = Codebook.Config()
    assert (config.threshold, config.most) == (0.9, 64)
    assert Codebook.Config(threshold=0, most=1) and Codebook.Config(threshold=1)
    for wrong in ({"threshold": -0.1}, {"threshold": 1.1}, {"most": 0}):
        with pytest.raises(ValidationError):
            Codebook.Config(**wrong)


def test_rows_go_to_the_best_group_or_to_the_last():
    router = learned([f"Q\n{SHORT}"], [f"Q\n{LETTER}"], ["Q\nName the colour."])
    assert routed(router, f"<image>\nWho?\n{SHORT}", f"Who?\n{LETTER}", "Sing a song") == ["01", "02", "03"]


def test_what_is_exported_scores_as_scikit_learn_does():
    """`route` has the rule written out; a threshold just below and just above the pair's score tells."""
    pairs = [
        ("answer question word", "answer question phrase"),
        ("use one short word word", "one long word"),
        ("red cup", "a red red cup here"),
    ]
    for a, b in pairs:
        score = pair_score(a, b)
        for threshold, to in ((score - 1e-6, "01"), (min(1, score + 1e-6), "02")):
            router = learned([b], ["something else entirely"], threshold=threshold)
            assert routed(router, a) == [to], (a, b, threshold)


def test_in_an_export_too_a_group_counts_with_its_mean():
    """(1 + 0) / 2 for the first group, 0.503 for the second."""
    router = learned(["answer question word", "classify picture"], ["answer question phrase"], threshold=0.4)
    assert routed(router, "answer question word") == ["02"]


def test_without_any_codebook_the_last_group_answers():
    state = {**learned(threshold=0).state_dict(), "codebook": {}}
    assert Codebook.route([{"question": "q"}], ["01", "02"], state, {}, None) == ["02"]


def test_in_an_export_too_strings_strings_of_stop_words_alone_are_alike_only_if_equal():
    router = learned(["is this"], ["answer question"], ["classify picture"])
    assert routed(router, "is this", "what is", "answer question") == ["01", "03", "02"]


def test_state_comes_back_and_a_run_groups_its_stages(tmp_path):
    stages = [{"recipe": "tiny/letter"}, {"recipe": "tiny/yesno"}, {"recipe": "tiny/letter", "name": "again"}]
    run_plan(pool_plan({"use": "codebook"}, stages), tmp_path)
    state = read_json(tmp_path / "03-again" / "router" / "state.json")["state"]
    assert list(state["codebook"]) == ["01-letter", "02-yesno"]
    again = Codebook(Codebook.Config())
    again.load_state_dict(state)
    assert again.state_dict() == state
