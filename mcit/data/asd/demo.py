"""Rules for the bundled tasks: wrong answers from their metadata, explanations from templates.

The explanations are filled-in sentences, not a model's: they say what the generators know about a picture (the object,
its kind, that it stands alone on a plain light ground, that it was blurred or darkened) and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from mcit.core.types import Row
from mcit.data.asd.assemble import Content
from mcit.data.asd.cells import Cells, Corpus, Rule, among, choice_text, other_choice, other_class
from mcit.data.asd.exchange import Exchange

_SEVERAL = frozenset({"fries", "jeans", "pancakes", "socks", "grapes", "scissors"})
_NO_ARTICLE = _SEVERAL | {"bacon", "beer", "bread", "broccoli", "cheese", "corn", "garlic", "popcorn", "ramen", "sushi"}
_UNSEEN = "unanswerable"
_MEANING = {
    "animal": "a living creature",
    "food": "something to eat or drink",
    "vehicle": "something that carries people or goods",
    "object": "an everyday thing, a tool or a piece of clothing",
}
_SHAPES = {
    "circle": "one round line without any corner",
    "square": "four equal sides and four corners",
    "triangle": "three sides and three corners",
}


def _a(name: str) -> str:
    if name in _NO_ARTICLE:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _is(name: str) -> str:
    return "are" if name in _SEVERAL else "is"


def _up(text: str) -> str:
    return text[0].upper() + text[1:]


def _others(names: Sequence[str], name: str, last: str) -> str:
    rest = [other for other in names if other != name]
    return f"{', '.join(rest[:-1])} {last} {rest[-1]}" if len(rest) > 1 else "".join(rest)


def _told(write: Callable[[Row, Exchange], Sequence[str]]) -> Rule:
    """One of several wordings, drawn by the row's seed; none where the question is not of the expected form."""

    def rule(row: Row, exchange: Exchange, corpus: Corpus, draw: random.Random) -> Content | None:
        texts = write(row, exchange)
        return Content(text=draw.choice(texts)) if texts else None

    return rule


# ---- kind: animal, food, vehicle or object? -------------------------------------------------------------------------
def _kind_brief(row: Row, exchange: Exchange) -> Sequence[str]:
    it, kind = _a(row.meta["object"]), exchange.answer
    listed = _others([*exchange.options, ""], "", "and")
    return (
        f"The picture shows {it}, so the right kind is {kind}, which stands for {_MEANING[kind]}.",
        f"The kind is {kind}, because what can be seen is {it}, and that counts as {_MEANING[kind]}.",
        f"Among {listed}, the best match is {kind}: the picture shows {it}, {_MEANING[kind]}.",
    )


def _kind_detail(row: Row, exchange: Exchange) -> Sequence[str]:
    name, kind = row.meta["object"], exchange.answer
    it, rest = _a(name), _others(exchange.options, kind, "and")
    listed = _others([*exchange.options, ""], "", "and")
    return (
        f"The picture shows {it} on a plain, light ground and nothing else. The kinds to choose from are {listed}. The "
        f"one that fits is {kind}, since {it} {_is(name)} {_MEANING[kind]}. The other kinds, {rest}, describe {it} "
        f"less well than {kind} does.",
        f"There is only one thing in the picture, {it}, seen against a plain ground. To find its kind, ask what best "
        f"describes {it}: {_MEANING[kind]}. Among the choices this is what {kind} stands for, so the answer is "
        f"{kind}, while {rest} do not fit.",
    )


# ---- edible: can it be eaten? ---------------------------------------------------------------------------------------
def _edible_named(row: Row, exchange: Exchange, corpus: Corpus, draw: random.Random) -> Content | None:
    """Options give the answer with an object: one wrong option has the right answer, two have the opposite one."""
    mine, seen = row.meta["object"], {(other.meta["object"], other.answer) for other in corpus.rows}
    same = sorted(name for name, answer in seen if answer == exchange.answer and name != mine)
    opposite = sorted((name, answer) for name, answer in seen if answer != exchange.answer and name != mine)
    if not same or len(opposite) < 2:
        return None
    wrong = [(draw.choice(same), exchange.answer), *draw.sample(opposite, 2)]
    options = [f"{answer}, this shows {_a(name)}" for name, answer in wrong]
    return Content(distractors=tuple(options), answer=f"{exchange.answer}, this shows {_a(mine)}")


def _edible_thing(row: Row, exchange: Exchange, corpus: Corpus, draw: random.Random) -> Content | None:
    """The question turned round: which thing is it that can, or cannot, be eaten?"""
    can = "can" if exchange.answer == "yes" else "cannot"
    return Content(text=row.meta["object"], question=f"Which thing that {can} be eaten is shown here?")


def _edible_brief(row: Row, exchange: Exchange) -> Sequence[str]:
    it, answer = _a(row.meta["object"]), exchange.answer
    what = "something" if answer == "yes" else "not something"
    return (
        f"{_up(answer)}: the picture shows {it}, and that is {what} to eat or drink.",
        f"The answer is {answer}, because what can be seen here is {it}, {what} to eat or drink.",
    )


def _edible_detail(row: Row, exchange: Exchange) -> Sequence[str]:
    name, answer = row.meta["object"], exchange.answer
    it, what = _a(name), "something" if answer == "yes" else "not something"
    does = {"yes": "does", "no": "does not"} if name not in _SEVERAL else {"yes": "do", "no": "do not"}
    return (
        f"{_up(answer)}. What the picture shows is {it}, standing on a plain, light ground with nothing else around. The "
        f"question is whether this can be eaten. Since {it} {_is(name)} {what} to eat or drink, the right answer to "
        f"the question is {answer}.",
        f"To answer, first look at what is there: one thing only, {it}, on a plain ground. Then ask whether this "
        f"belongs on a plate or in a glass. {_up(it)} {does[answer]}, so the answer to the question is {answer}.",
    )


# ---- naming and lowvision: what is it? ------------------------------------------------------------------------------
def _naming_brief(row: Row, exchange: Exchange) -> Sequence[str]:
    it = _a(exchange.answer)
    return (
        f"The object in the image is {it}, shown alone on a plain, light ground.",
        f"What the image shows is {it}; nothing else is drawn beside it.",
        f"This is {it}: its shape and its colours tell it from other things.",
    )


def _naming_detail(row: Row, exchange: Exchange) -> Sequence[str]:
    name = exchange.answer
    it = _a(name)
    return (
        f"The image holds a single object on a plain, light ground. It is {it}: the drawing has the shape, the parts and "
        f"the colours by which {it} can be told from other things. Size, place and tilt differ from picture to "
        f"picture, but the name of the object stays {name}.",
        f"Only one thing is drawn here, {it}, and the ground behind it is plain and light. {_up(it)} may be turned a "
        f"little or stand away from the middle, yet the outline and the colours still show what is meant. So the name of "
        f"the object is {name}.",
    )


def _seen_or_not(style: str) -> Rule:
    """Wrong answers drawn as often as they are right elsewhere, so that no proposal gives the answer away."""

    def rule(row: Row, exchange: Exchange, corpus: Corpus, draw: random.Random) -> Content | None:
        return among(style, exchange.answer, corpus.answer_list, draw)

    return rule


def _lowvision_brief(row: Row, exchange: Exchange) -> Sequence[str]:
    if exchange.answer == _UNSEEN:
        return (
            "This is unanswerable: the picture is so blurred or so dark that no object can be made out.",
            "Nothing can be recognised here, because the picture is too blurred or too dark; what it is stays unanswerable.",
        )
    it = _a(exchange.answer)
    return (
        f"It can be seen well enough: the picture shows {it} on a plain ground.",
        f"What this picture shows is {it}; it is clear enough to tell.",
    )


def _lowvision_detail(row: Row, exchange: Exchange) -> Sequence[str]:
    if exchange.answer == _UNSEEN:
        return (
            "There may be something in this picture, but it cannot be told what. The picture is so strongly blurred or so "
            "dark that neither an outline nor any part of a thing stays visible. Naming an object would be a guess. The "
            "question is therefore unanswerable.",
            "This is unanswerable. To name a thing, one has to see at least its outline or its colours, and this picture is "
            "too blurred or too dark for either. Whatever stood on the ground before, it can no longer be recognised, so no "
            "name would be right.",
        )
    name = exchange.answer
    it = _a(name)
    return (
        f"The picture can be read. It shows one thing, {it}, on a plain ground. It may be a little blurred or a little "
        f"dark, yet the outline and the parts are clear enough to tell what it is. So the question has an answer, and "
        f"that answer is {name}.",
        f"First it has to be decided whether anything can be seen, and here it can: there is one thing in the picture. Its "
        f"shape is that of {it}, even where the picture is a little dark or not quite sharp. What is shown is "
        f"therefore {name}.",
    )


# ---- the drawn shapes of the tiny tasks -----------------------------------------------------------------------------
def _shape_brief(row: Row, exchange: Exchange) -> Sequence[str]:
    shape = exchange.answer
    return (
        f"The picture shows a {shape}, since what is drawn has {_SHAPES[shape]}.",
        f"It is a {shape}: one can see {_SHAPES[shape]} on a grey ground.",
    )


def _shape_detail(row: Row, exchange: Exchange) -> Sequence[str]:
    shape = exchange.answer
    return (
        f"One shape is drawn on a plain, grey ground. It has {_SHAPES[shape]}, and that is what makes it a {shape}. The "
        f"other shapes on offer, {_others(exchange.options, shape, 'and')}, look different, so the answer is {shape}.",
    )


def _asked_shape(exchange: Exchange) -> tuple[str, str]:
    """Shape and colour of ``Is the circle red?``; a question of another form is refused by the rules."""
    words = exchange.question.removesuffix("?").split()
    return (words[2], words[3]) if len(words) == 4 and words[:2] == ["Is", "the"] else ("", "")


def _colour(style: str) -> Rule:
    """The question turned round: which colour is it?"""

    def rule(row: Row, exchange: Exchange, corpus: Corpus, draw: random.Random) -> Content | None:
        shape, _ = _asked_shape(exchange)
        if not shape:
            return None
        question, colour = f"Which colour is the {shape} drawn in?", row.meta["class"]
        if style == "short":
            return Content(text=colour, question=question)
        colours = sorted({other.meta["class"] for other in corpus.rows})
        found = among("mcq", colour, colours, draw)
        return found and Content(distractors=found.distractors, answer=colour, question=question)

    return rule


def _colour_told(row: Row, exchange: Exchange, *, long: bool) -> Sequence[str]:
    shape, asked = _asked_shape(exchange)
    colour = row.meta["class"]
    if not shape:
        return ()
    if not long:
        return (f"{_up(exchange.answer)}: the {shape} in the picture is drawn in {colour}, and {asked} was asked for.",)
    return (
        f"{_up(exchange.answer)}. There is one {shape} in the picture, drawn on a plain, grey ground. Its colour is {colour}. "
        f"The question is whether it is {asked}. Comparing the two colours gives the answer, which is {exchange.answer}.",
    )


def _word_told(row: Row, exchange: Exchange, *, long: bool) -> Sequence[str]:
    colour, shape = exchange.answer, exchange.question.removesuffix("?").split()[-1]
    if not long:
        return (f"The {shape} in the picture is drawn in {colour} on a plain, grey ground.",)
    return (
        f"One {shape} is drawn in this picture, and the ground around it is plain and grey. The whole {shape} is filled with "
        f"a single colour. That colour is {colour}, so the answer to the question is {colour}.",
    )


DEMO_CELLS: dict[str, Cells] = {
    "kind": {"yn": other_choice, "short": choice_text, "brief": _told(_kind_brief), "detail": _told(_kind_detail)},
    "edible": {
        "mcq": _edible_named,
        "short": _edible_thing,
        "brief": _told(_edible_brief),
        "detail": _told(_edible_detail),
    },
    "naming": {
        "yn": other_class("yn"),
        "mcq": other_class("mcq"),
        "brief": _told(_naming_brief),
        "detail": _told(_naming_detail),
    },
    "lowvision": {
        "yn": _seen_or_not("yn"),
        "mcq": _seen_or_not("mcq"),
        "brief": _told(_lowvision_brief),
        "detail": _told(_lowvision_detail),
    },
    "shapes-letter": {
        "yn": other_choice,
        "short": choice_text,
        "brief": _told(_shape_brief),
        "detail": _told(_shape_detail),
    },
    "shapes-yesno": {
        "mcq": _colour("mcq"),
        "short": _colour("short"),
        "brief": _told(lambda row, exchange: _colour_told(row, exchange, long=False)),
        "detail": _told(lambda row, exchange: _colour_told(row, exchange, long=True)),
    },
    "shapes-word": {
        "yn": other_class("yn"),
        "mcq": other_class("mcq"),
        "brief": _told(lambda row, exchange: _word_told(row, exchange, long=False)),
        "detail": _told(lambda row, exchange: _word_told(row, exchange, long=True)),
    },
}
