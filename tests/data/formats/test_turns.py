"""Turns of LLaVA, ShareGPT and OpenAI rows; everything else gets a message that says what to write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcit.core.types import Turn
from mcit.data.formats.element import RowError
from mcit.data.formats.turns import plain_text, turns_of, with_system_in_front

ADDRESS = "https://x.org/a.png"


def talk(*turns, key="conversations", who="from", what="value", **rest):
    return {key: [{who: name, what: text} for name, text in turns], **rest}


def chat(*turns):
    return talk(*turns, key="messages", who="role", what="content")


def texts(value, kind):
    pictures = []
    return [(t.role, t.text) for t in turns_of(value, kind, pictures)], pictures


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (talk(("system", " S "), ("human", "q "), ("gpt", "a")), "llava"),
        (talk(("system", "S"), ("user", "q"), ("chatgpt", "a")), "sharegpt"),
        ({**talk(("human", "q"), ("gpt", "a")), "system": " S "}, "sharegpt"),
        ({**talk(("system", "S"), ("human", "q"), ("gpt", "a")), "system": "S"}, "llava"),
        (talk(("system", "S"), ("human", "q"), ("model", "a")), "sharegpt"),
        (chat(("developer", "S"), ("user", "q"), ("assistant", "a")), "messages"),
        (talk(("system", "S"), ("user", "q"), ("assistant", "a"), who="role", what="content"), "messages"),
        (
            chat(
                ("system", "S"),
                ("user", [{"type": "text", "text": "q"}]),
                ("assistant", [{"type": "text", "text": "a"}]),
            ),
            "messages",
        ),
    ],
)
def test_layouts(value, kind):
    assert texts(value, kind) == ([("system", "S"), ("user", "q"), ("assistant", "a")], [])


def test_numbers_are_their_text_and_an_empty_system_turn_says_nothing():
    assert texts(talk(("system", ""), ("human", "1 + 2?"), ("gpt", 3)), "llava")[0] == [
        ("user", "1 + 2?"),
        ("assistant", "3"),
    ]
    assert plain_text(0.5) == "0.5" and plain_text(None) == ""


def test_parts_with_pictures_keep_their_places():
    content = [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": ADDRESS}},
        {"type": "image", "image": "b.png"},
        {"type": "image"},
        "please.",
    ]
    turns, pictures = texts(chat(("user", content), ("assistant", "same")), "messages")
    assert turns[0][1] == "Compare\n<image>\n<image>\n<image>\nplease." and pictures == [ADDRESS, "b.png"]


BAD = [
    ({"question": "q", "answer": "a", "n": 1}, "llava", "its keys are 'question', 'answer', 'n'", "fields: [question, answer]"),
    ({"messages": [{"role": "user"}]}, "llava", "the row has 'messages', its source is of kind llava", "kind: messages"),
    (talk(("user", "q"), ("assistant", "a")), "llava", "turn 1 is from 'user'", "kind: sharegpt"),
    (talk(("user", "q"), who="role", what="content"), "llava", "turn 1 is from 'user'", "kind: messages"),
    (talk(("human", "q"), ("gpt", True)), "llava", "a turn is true, no text", '"yes"'),
    (talk(("human", "q"), ("gpt", float("inf"))), "llava", "a turn is inf", "write the text"),
    (talk(("human", "q"), ("gpt", ["a", "b"])), "llava", "of type list", "quotes"),
    (talk(("human", "q"), ("system", "s"), ("gpt", "a")), "llava", "turn 2 is from 'system'", "comes first"),
    (talk(("human", "q"), ("human", "r")), "llava", "turn 2 is from 'human', expected 'gpt'", "alternate"),
    ({**talk(("system", "s"), ("human", "q")), "system": "t"}, "llava", "a 'system' and another system turn", "keep one"),
    (talk(("system", "s")), "llava", "the last turn is not an answer", "add the gpt turn"),
    (chat(("user", "q"), ("tool", "x")), "messages", "turn 2 is from 'tool'", "tool calls"),
    (chat(("user", [{"type": "audio"}]), ("assistant", "a")), "messages", "a part is of type 'audio'", "text and image"),
    (chat(("user", [3]), ("assistant", "a")), "messages", "a part is of type int", "text and image"),
    (chat(("user", [{"type": "text"}]), ("assistant", "a")), "messages", "holds no text", "type: text"),
    ({"conversations": ["hi"]}, "llava", "turn 1 is from None", "only 'human', 'gpt' and 'system'"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind", "what", "fix"), BAD)
def test_messages_say_what_to_write(value, kind, what, fix):
    with pytest.raises(RowError) as caught:
        turns_of(value, kind, [])
    assert what in caught.value.what and fix in caught.value.fix


def test_system_in_front_goes_behind_the_pictures():
    turns = [Turn("system", "Be brief."), Turn("user", "<image>\n<image>\nWhat?"), Turn("assistant", "a")]
    assert with_system_in_front(turns) == [Turn("user", "<image>\n<image>\nBe brief.\n\nWhat?"), Turn("assistant", "a")]
    assert with_system_in_front(turns[1:]) == turns[1:]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.sampled_from(["human", "user", "text", "image"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "role", "value", "content", "type", "text", "image_url", "url"]), inner
        )
    ),
    max_leaves=12,
)


@given(
    value=st.dictionaries(st.sampled_from(["conversations", "messages", "id"]), JSON),
    kind=st.sampled_from(["llava", "sharegpt", "messages"]),
)
def test_no_json_raises_anything_else(value, kind):
    try:
        turns = turns_of(value, kind, [])
    except RowError as error:
        assert error.what and error.fix
    else:
        assert turns[-1].role == "assistant" and all(turn.text for turn in turns)
