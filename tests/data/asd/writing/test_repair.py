"""JSON as models write it."""

import pytest

from mcit.data.asd.writing.repair import read_lenient

WANTED = {"a": ["x", "y"], "b": 1}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": ["x", "y"], "b": 1}',
        'Here you are:\n```json\n{"a": ["x", "y"], "b": 1}\n```\nAnything else?',
        '```\n{"a": ["x", "y",], "b": 1,}\n```',
        '{"a": ["x", "y"], // the list\n /* and\n more */ "b": 1}',
        '{"a": ["x", "y"]\n "b": 1}',
        '{"a": ["x" "y"], "b": 1} and then prose with } in it',
    ],
)
def test_mended(text):
    assert read_lenient(text) == WANTED


def test_strings_are_left_alone():
    assert read_lenient('{"a": "see // this, /* not a comment */ and ,] too"}') == {
        "a": "see // this, /* not a comment */ and ,] too"
    }
    assert read_lenient(r'{"a": "a \"quoted, } word\" // x"}') == {"a": 'a "quoted, } word" // x'}
    assert read_lenient('{"a": "http://x.y", }') == {"a": "http://x.y"}


def test_a_list_of_objects_with_missing_commas():
    assert read_lenient('[{"k": 1} {"k": 2}]') == [{"k": 1}, {"k": 2}]


@pytest.mark.parametrize("text", ["", "No.", '{"a": ', '{"a" 1}', "[" * 100_000, '{"a": ' + '"x" ' * 40 + "}"])
def test_beyond_repair(text):
    with pytest.raises(ValueError):
        read_lenient(text)


@pytest.mark.parametrize("before", ["Sure [JSON below]: ", "As {asked}: ", "```json\n[no fence] "])
def test_brackets_in_prose_before_it(before):
    assert read_lenient(before + '{"a": 1}') == {"a": 1}
