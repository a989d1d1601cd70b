"""The six splits of texts and the unrelated ones."""

import pytest

from mcit.core.errors import DataError
from mcit.data.sources.memory import GENERATORS, KINDS, unrelated


def pairs(kind, rows=144, seed=1):
    made = list(GENERATORS[f"memory-{kind}"]("train", rows, seed, None))
    return [(row["text"], row["meta"]["foil"]) for row in made]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_studied_once_and_no_foil_is_studied(kind):
    found = pairs(kind)
    studied = {text for text, _ in found}
    assert len(studied) == len(found) == 144 and not studied & {foil for _, foil in found}
    assert found == pairs(kind) != pairs(kind, seed=2)


def test_what_foils_have_in_common_with_what_is_studied():
    for text, foil in pairs("synonym"):
        a, b = text.split(), foil.split()
        assert len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1
    text, foil = pairs("paraphrase")[0]
    assert {w.strip(".,").lower() for w in text.split()} | {"was", "by"} == {
        w.strip(".,").lower() for w in foil.split()
    }
    mixed, _ = pairs("shuffled")[0]
    assert sorted(mixed) == sorted(pairs("sentences")[0][0])
    assert {len(text.split()) for text, _ in pairs("strings")} == {12}


def test_definitions_and_too_many_rows():
    assert len({row["text"] for row in unrelated("train", 500, 1, None)}) == 500
    with pytest.raises(DataError, match="rows are asked for"):
        pairs("sentences", rows=200)
    with pytest.raises(DataError, match="rows are asked for"):
        pairs("synonym", rows=10**6)
