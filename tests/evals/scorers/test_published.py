"""Every strict rule equals the published one: on the cases that decided it, and on any string."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcit.core import lookup
from mcit.evals.normalise import CONTRACTIONS
from mcit.evals.scorers.base import MODES, Scorer
from tests.evals.scorers import published as rules

CHOICES = {"answer": "B", "choices": ["wood", "iron", "stone"], "question": "Which?"}
MAP = {"question": "Which states are red?", "image": "Sci/images/MapQA_1.png"}
TEN = {"answer": "2", "answers": ["2", "two", "2.", "The two", "i'm", "dont", "u.s.", "a-b", "3", "3"]}
PAIRS = {
    "choice": (rules.science_qa_sefe, [CHOICES, {**CHOICES, "answer": "C"}]),
    "coin_choice": (rules.science_qa_coin, [CHOICES, {**CHOICES, "answer": "A"}]),
    "contains": (rules.remote_sensing, [{"answer": a} for a in ("Yes", "3.5", "left.", "Red Car", "a. b", "ß")]),
    "exact": (rules.upper, [{"answer": a} for a in ("Straße", "two", "Unanswerable", "ﬁsh", "ſ")]),
    "ocrvqa": (rules.ocr_vqa, [{"answer": a} for a in ("Straße", "two", "Unanswerable", "ﬁsh", "İ")]),
    "gqa": (rules.gqa, [{"answer": a} for a in ("yes", "Yes", "left.")]),
    "name": (rules.image_net, [{"answer": a} for a in ("tabby cat", "Ox")]),
    "fin": (rules.finance, [{"answer": a} for a in ("B", "yes", "a b", "İ")]),
    "medical": (rules.pathology, [{"answer": a} for a in ("no", "Red Cell")]),
    "spatial": (rules.perception, [{"answer": a} for a in ("left", "3.5", "in front", "İ")]),
    "ocrbench": (
        rules.ocr_bench,
        [
            {"answer": "Red Car", "answers": ["Red Car", "iron\n"]},
            {"answer": "B"},
            {"answer": "a b", "answer_type": "Handwritten Mathematical Expression Recognition"},
        ],
    ),
    "mapqa": (rules.science, [{**MAP, "answer": "ohio,texas,utah"}, {**MAP, "question": "How many?", "answer": "Ten"}]),
    "sci": (
        rules.science,
        [
            {"answer": "B", "question": "Which?", "image": "Sci/images/AI2D_7.png"},
            {"answer": "iron", "question": "Which?", "image": "SciVerse_1.png"},
            {"answer": "iron", "question": "Which?", "image": "AI2D.png"},
            {**MAP, "answer": "ohio,texas"},
        ],
    ),
    "grounding": (
        rules.grounding,
        [
            {"answer": "", "box": [0.1, 0.1, 0.5, 0.5], "size": [640, 480]},
            {"answer": "", "box": [0.0, 0.0, 1.0, 1.0], "size": [333, 500]},
        ],
    ),
    "vqa": (
        lambda text, gold: rules.text_vqa(text, gold, CONTRACTIONS),
        [TEN, {"answer": "x", "answers": ["cat"] * 10}],
    ),
}
WORDS = st.sampled_from(
    "A B C D E F a b c The answer is Answer: Option yes no two 2 3.5 35 left Red Car Unanswerable . , ; ! ? - / ( ) [ ] ' 's"
    " dont u.s. ohio texas utah ohio,texas iron tabby cat Ox ß ﬁsh SS 0.1 0.5 0.10,0.10,0.50,0.5 [0.1, nan inf 1e999 -1".split()
)
NUMBERS = st.sampled_from(["0", "0.1", "0.30", "0.5", "1", "-0.5", "nan", "inf", "1e400", "0.499", ".5", " 0.55", "x"])
TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(alphabet="ABCDEabc. ()?!,'\nßİſ1", max_size=8),
    st.lists(WORDS, max_size=6).map(" ".join),
    st.lists(WORDS, max_size=4).map("".join),
    st.lists(NUMBERS, min_size=3, max_size=5).map(lambda numbers: f"[{','.join(numbers)}5]"),
)


def scorer_of(name) -> Scorer:
    return lookup.class_of("evals.scorers", name, base=Scorer)()


def test_every_scorer_with_a_published_rule_is_compared():
    assert {name for name in lookup.known("evals.scorers") if scorer_of(name).published} == set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
@given(text=TEXTS)
@example("")
@example("\ud800")
@example("[0.1,0.1,0.5,0.31]")
@settings(max_examples=150, deadline=None)
def test_strict_is_the_published_rule_on_any_string(name, text):
    rule, golds = PAIRS[name]
    scorer = scorer_of(name)
    for gold in golds:
        assert scorer.strict(text, gold) == pytest.approx(rule(text, gold), abs=1e-12), (text, gold)


@pytest.mark.parametrize("name", lookup.known("evals.scorers"))
@given(text=TEXTS)
@example("\ud800")
@settings(max_examples=60, deadline=None)
def test_no_string_raises_in_any_mode(name, text):
    gold = {
        "answer": "B",
        "answers": ["B"] * 10,
        "choices": ["x", "y"],
        "box": [0, 0, 1, 1],
        "question": "Which states?",
    }
    scorer = scorer_of(name)
    for value in (*(scorer.score(text, gold, mode=mode) for mode in MODES), scorer.lenient(text, gold)):
        assert 0.0 <= value <= 1.0


def test_the_table_of_contractions_is_the_published_one():
    """Compared entry by entry with m4c_evaluator.py but for entries that change nothing or are in a case never looked up."""
    assert len(CONTRACTIONS) == 114
    assert rules.digest(CONTRACTIONS) == "853d25c89947b7f6d41f6c5f81b2d6c3119927f4b16f557fc1b03af6ef45605e"


RIGHT, WRONG = 1.0, 0.0


@pytest.mark.parametrize(
    ("name", "text", "answer", "expected"),
    [
        *(
            ("contains", *pair, RIGHT)
            for pair in [("Yes", "yes"), ("No.", "no"), ("left", "left."), ("Red Car", "red car")]
        ),
        ("contains", "it is 35 m", "3.5", RIGHT),
        *(("contains", *pair, WRONG) for pair in [("0.5", "0.5"), ("3.5 m", "3.5"), ("3.14.", "3.14")]),
        *(("coin_choice", text, "A", RIGHT) for text in ["A.", "a", "(A)", "A)", "A:", "A B", "Answer: A", "Option A"]),
        *(("coin_choice", text, "A", RIGHT) for text in ["The answer is A", "a dog"]),
        ("coin_choice", "c++", "C", RIGHT),
        *(("choice", text, "A", WRONG) for text in ["A.", "a", "(A)", "A)", "A:", "A B", "Answer: A", "Option A"]),
        *(("choice", text, "A", WRONG) for text in ["The answer is A", "a dog"]),
        ("choice", "c++", "C", WRONG),
        ("ocrvqa", "Unanswerable", "Unanswerable", WRONG),
        ("exact", "Unanswerable", "unanswerable", RIGHT),
        ("exact", "STRASSE", "straße", RIGHT),
        ("ocrvqa", "STRASSE", "straße", WRONG),
        ("exact", "s", "ſ", RIGHT),  # long s
        ("ocrvqa", "s", "ſ", WRONG),
        ("exact", "FISH", "ﬁsh", RIGHT),  # the ligature fi
        ("ocrvqa", "FISH", "ﬁsh", WRONG),
    ],
)
def test_cases_that_decided_the_rules(name, text, answer, expected):
    gold = {"answer": answer, "choices": ["x", "y", "z"], "image": "AI2D_1.png", "question": "Which?"}
    assert scorer_of(name).strict(text, gold) == expected


def test_the_scale_of_a_picture_decides_exact_halves():
    """0.6 x 0.1 over 1.2 x 0.1 of shares rounds to one side of a half, of pixels to another."""
    halves = []
    for side in range(100, 1000):
        gold = {"answer": "", "box": [0.1, 0.3, 0.7, 0.9], "size": [side, side // 2]}
        text = "[0.1,0.3,0.4,0.95"  # the first digit and the last go: .1,0.3,0.4,0.9, which is half of the box
        assert scorer_of("grounding").strict(text, gold) == rules.grounding(text, gold)
        halves.append(rules.grounding(text, gold))
    assert set(halves) == {RIGHT, WRONG}
