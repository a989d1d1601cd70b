"""The answer normaliser of the VQA benchmarks, as it is (strict) and with its two defects mended (fixed).

Rules in order: lower case; commas and question marks go; ``'s`` gets a blank before it; each punctuation mark is
deleted if it touches a blank anywhere in the text, otherwise it becomes a blank; full stops go unless a digit follows;
number words become digits; articles go; contractions get their apostrophe back.

Defects of the original, kept by `normalise` and mended by `normalise_fixed`: at most 32 full stops are removed, and the
contractions of "I" are listed in upper case, which never matches a lower-cased text.
"""

from __future__ import annotations

import re

_COUNTING = "zero one two three four five six seven eight nine ten".split()
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTING)}
_NUMBERS["none"] = "0"
_ARTICLES = frozenset({"a", "an", "the"})
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_STOPS = 32

# A contraction is found with one of its apostrophes missing, whichever it is: "couldnt've" and "couldn'tve".
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_OF_I = ["i'm", "i've", "i'd've"]


def _missing_one(words: list[str]) -> dict[str, str]:
    return {w[:i] + w[i + 1 :]: w for w in words for i, letter in enumerate(w) if letter == "'"}


CONTRACTIONS = {**_missing_one(_CONTRACTIONS), "somebody'd": "somebodyd"}
"""What is written -> what is compared. The last entry is an oddity of the original."""
CONTRACTIONS_FIXED = {**_missing_one([*_CONTRACTIONS, *_OF_I])}
"""The same without the oddity and with the contractions of "I" in the case in which they are looked up."""


def normalise(text: str) -> str:
    """The form in which the VQA benchmarks compare answers."""
    return _normalise(text, CONTRACTIONS, _MOST_STOPS)


def normalise_fixed(text: str) -> str:
    """The same with the defects of the original mended."""
    return _normalise(text, CONTRACTIONS_FIXED, 0)


def _normalise(
    text: str, contractions: dict[str, str], most_stops: int, *, articles: frozenset[str] = _ARTICLES
) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in _MARKS:
        touches = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if touches else " ")
    out = _FULL_STOP.sub("", out, count=most_stops)
    words = [_NUMBERS.get(word, word) for word in out.split()]
    return " ".join(contractions.get(word, word) for word in words if word not in articles)


def same(text: str, answer: str) -> bool:
    """Whether both are equal after normalising, which leaves an answer of articles only ("A") its articles.

    One of marks only is compared as it is written.
    """
    wanted, whole = normalise_fixed(answer), _with_articles(answer)
    if wanted or whole:
        return normalise_fixed(text) == wanted if wanted else _with_articles(text) == whole
    return text.strip(" .") == answer.strip(" .") != ""


def _with_articles(text: str) -> str:
    return _normalise(text, CONTRACTIONS_FIXED, 0, articles=frozenset())


def contains(text: str, answer: str) -> bool:
    """Whether `answer` stands in `text` as whole words after normalising; one of articles only as it is written.

    A number with decimals is one word: "5" does not stand in "3.5".
    """
    wanted = normalise_fixed(answer)
    return _stands_in(normalise_fixed(text), wanted) if wanted else _stands_in(text, answer.strip(" ."))


def _stands_in(text: str, part: str) -> bool:
    return bool(part) and re.search(rf"(?<!\w)(?<!\d\.){re.escape(part)}(?!\w|\.\d)", text) is not None
