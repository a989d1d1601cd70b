"""Every ground of refusal, and what passes."""

import json

import pytest

from mcit.data.asd.cues import LIMITS
from mcit.data.asd.diversify import Job
from mcit.data.asd.exchange import Exchange
from mcit.data.asd.writing.review import review
from mcit.evals.normalise import normalise
from tests.fakes.rows import row

ONE = (Exchange("How many cats?", "two"),)
TWO = (Exchange("What is it?", "cat"), Exchange("Which colour?", "dark red"))
BRIEF = "There are two cats, one beside the other on a chair."


def judged(style, value, exchanges=ONE, shape="single", **fields):
    job = Job(0, row("q", "a", **fields), style, exchanges, None)
    reply = value if isinstance(value, str) else json.dumps(value)
    return review(job, shape, reply, normalise=normalise, limits=LIMITS)


def listed(*answers, **extra):
    return [{"question_index": k, "correct_answer": a, **extra} for k, a in enumerate(answers, start=1)]


def test_what_passes():
    assert judged("yn", {"distractor_option": " five "}).content[0].distractors == ("five",)
    assert judged("mcq", {"distractor_options": ["five", "six", "ten"]}).content[0].distractors == (
        "five",
        "six",
        "ten",
    )
    assert judged("brief", [{"explanation": BRIEF}]).content[0].text == BRIEF
    found = judged("yn", listed("Cat", "dark red.", distractor_option="zebra"), TWO, "list")
    assert found.reasons == () and len(found.content) == 2
    described = {"target_index": 1, "description": "A brown dog lies on the left side of the green grass."}
    assert judged("brief", [described], (Exchange("Where?", "[0.1, 0.1, 0.2, 0.2]"),), "targets").reasons == ()
    named = {"gt_category": "Tabby Cat", "explanation": "The striped coat and the whiskers are those of a tabby cat."}
    assert judged("brief", named, (Exchange("What?", "tabby cat"),), "class").reasons == ()


@pytest.mark.parametrize("key", ["answer", "correct_answer"])
def test_the_published_keys_are_both_an_echo(key):
    """The authors' prompts for explanations echo ``answer``, those for distractors ``correct_answer``."""
    texts = ["There is one cat on the chair near the window.", "The coat of the animal is of a dark red colour."]
    pairs = zip(("cat", "dark red"), texts, strict=True)
    value = [{"question_index": k, key: a, "explanation": text} for k, (a, text) in enumerate(pairs, start=1)]
    assert judged("brief", value, TWO, "list").reasons == ()
    value[1][key] = "blue"
    assert judged("brief", value, TWO, "list").reasons == (f"'{key}' is not the row's answer",)


@pytest.mark.parametrize("key", ["answer", "correct_answer"])
def test_one_question_may_come_as_a_list_with_its_echo(key):
    """The authors ask for a list even of one question; an echo that drifted is told there too."""
    item = {"question_index": 1, "question": "How many cats?", key: "2", "explanation": BRIEF}
    assert judged("brief", [item]).reasons == ()
    assert judged("brief", item).content[0].text == BRIEF
    assert judged("brief", [{**item, key: "three"}]).reasons == (f"'{key}' is not the row's answer",)


def test_items_are_put_in_order_by_their_index():
    value = listed("cat", "dark red", distractor_option="zebra")
    value[0]["distractor_option"] = "owl"
    found = judged("yn", value[::-1], TWO, "list")
    assert [c.distractors for c in found.content] == [("owl",), ("zebra",)]


def test_number_words_are_digits_and_articles_go():
    """The normaliser of the VQA benchmarks: "2" is "two", "the cat" is "cat"."""
    assert judged("yn", {"distractor_option": "2"}).reasons == ("a distractor is the answer",)
    value = listed("the cat", "dark red", distractor_option="zebra")
    assert judged("yn", value, TWO, "list").reasons == ()


@pytest.mark.parametrize(
    "style, value, reason",
    [
        ("yn", "I would say five", "unparsable JSON (no JSON object or array)"),
        ("yn", "[1, 2]", "not a JSON object"),
        ("yn", {}, "'distractor_option' is missing or empty"),
        ("yn", {"distractor_option": " "}, "'distractor_option' is missing or empty"),
        ("yn", {"distractor_option": 5}, "'distractor_option' is missing or empty"),
        ("yn", {"distractor_option": ["five", "six"]}, "2 distractors, 1 wanted"),
        ("yn", {"distractor_option": "Two."}, "a distractor is the answer"),
        ("yn", {"distractor_option": "two cats"}, "a distractor contains the answer or is part of it"),
        ("yn", {"distractor_option": "sorry, none"}, "speaks of the task or apologises"),
        ("mcq", {"distractor_options": ["five", "six"]}, "2 distractors, 3 wanted"),
        ("mcq", {"distractor_options": ["five", "six", "5"]}, "a distractor is repeated"),
        ("brief", {"explanation": ""}, "'explanation' is missing or empty"),
        ("brief", {"explanation": "two cats are here"}, "fewer than 8 words"),
        ("brief", {"explanation": "two " * 46}, "more than 45 words"),
        ("detail", {"explanation": BRIEF}, "fewer than 25 words"),
        ("detail", {"explanation": "two " * 91}, "more than 90 words"),
        ("brief", {"explanation": BRIEF.replace("two", "some")}, "does not name the answer"),
        ("brief", {"explanation": BRIEF + " This is the ground truth."}, "speaks of the task or apologises"),
        ("brief", {"explanation": "Given the provided answer two, " + BRIEF}, "speaks of the task or apologises"),
        (
            "brief",
            {"explanation": "I apologize, but there may be two of them here."},
            "speaks of the task or apologises",
        ),
    ],
)
def test_refusals(style, value, reason):
    found = judged(style, value)
    assert found.content == () and reason in found.reasons


@pytest.mark.parametrize(
    "value, reason",
    [
        (listed("cat", distractor_option="x"), "1 items for 2 questions"),
        (listed("cat", "dark red", "x", distractor_option="x"), "3 items for 2 questions"),
        ({"distractor_option": "x"}, "not a JSON list of objects"),
        (
            [{**item, "question_index": 0} for item in listed("cat", "dark red", distractor_option="x")],
            "'question_index' does not run from 1 to 2",
        ),
        (listed("dark red", "cat", distractor_option="zebra"), "'correct_answer' is not the row's answer"),
    ],
)
def test_drifted_lists(value, reason):
    assert judged("yn", value, TWO, "list").reasons == (reason,)


def test_explanations_that_contradict_yes_or_no():
    gold = (Exchange("Is it red?", "yes"),)
    found = judged("brief", {"explanation": "No, yes would be wrong since it is blue."}, gold)
    assert found.reasons == ("contradicts the answer",)
    assert judged("brief", {"explanation": "Yes, because the whole ball is clearly red here."}, gold).reasons == ()


def test_answers_of_annotators_are_no_distractors():
    """TextVQA: another accepted answer may not be offered as a wrong one."""
    value = {"distractor_options": ["five", "couple", "ten"]}
    assert judged("mcq", value, meta={"answers": ["two", "couple"]}).reasons == ("a distractor is an accepted answer",)


def test_a_part_of_a_word_is_no_overlap():
    assert judged("yn", {"distractor_option": "category"}, (Exchange("What?", "cat"),)).reasons == ()
