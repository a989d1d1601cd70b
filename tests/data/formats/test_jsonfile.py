"""JSON files in pieces: the same elements and lines whatever the size of the pieces; damage costs one row."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcit.core.errors import DataError
from mcit.data.formats import jsonfile
from mcit.data.formats.jsonfile import json_elements
from tests.fakes.rows import llava


def read(path):
    """(line, value or problem) of each element."""
    return [(e.line, e.problem or e.value) for e in json_elements(path)]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_line_numbers_inside_an_array(tmp_path):
    """One key a line: rows of json.dumps(indent=1) begin where their brace stands."""
    path = write(tmp_path / "f.json", json.dumps([llava("a"), llava("b"), {"id": "c"}], indent=1))
    starts = [n for n, line in enumerate(path.read_text().split("\n"), start=1) if line == " {"]
    assert [line for line, _ in read(path)] == starts


ARRAY = json.dumps([llava("ä"), {"id": 2, "n": [1.5, -3e-7, True, None, '\u2028 \\ " \n']}, 12, "x", [], llava("e")])


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 0, 3])
def test_pieces_do_not_show(tmp_path, monkeypatch, piece, indent):
    path = write(tmp_path / "f.json", json.dumps(json.loads(ARRAY), indent=indent, ensure_ascii=False))
    whole = read(path)
    assert [value for _, value in whole] == json.loads(ARRAY)
    monkeypatch.setattr(jsonfile, "_PIECE", piece)
    assert read(path) == whole


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=5), piece=st.integers(1, 40))
def test_what_json_wrote_is_read(tmp_path_factory, rows, piece):
    folder = tmp_path_factory.mktemp("json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonfile, "_PIECE", piece)
        array = write(folder / "a.json", json.dumps(rows, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        lines = write(folder / "b.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
        if "\\ud" not in json.dumps(rows):
            assert [value for _, value in read(array)] == rows
        assert read(lines) == list(enumerate(rows, start=1))


@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet='[]{}",:\\ \n1aidtex"', max_size=60))
def test_no_text_stops_the_reading(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("any")
    whole = read(write(folder / "f", text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonfile, "_PIECE", 3)
        again = read(folder / "f")
    assert [line for line, _ in again] == [line for line, _ in whole]


def test_malformed_lines_do_not_stop_the_reading(tmp_path):
    good = json.dumps(llava("a"))
    text = f'{good}\n{{"id": "b", \n\n[1, 2]\n{json.dumps(llava("c"))}\n{{"id": NaN}}\n"x"\n' + "[" * 100_000
    found = list(json_elements(write(tmp_path / "f.jsonl", text)))
    assert [e.line for e in found if e.problem] == [2, 6, 8] and len(found) == 7
    assert "malformed JSON" in found[1].problem and found[4].problem == "NaN is not a JSON number"
    assert found[4].value.keys() == {"id"}  # so that the row can be named


def test_malformed_element_of_an_array(tmp_path):
    a, b, c = (json.dumps(llava(i)) for i in "abc")
    found = read(write(tmp_path / "f.json", f"[\n{a},\n{b[:-20]}\n,\n{c}\n]"))
    assert [x[1]["id"] for x in found if isinstance(x[1], dict)] == ["a", "c"]
    (bad,) = [x for x in found if isinstance(x[1], str)]
    assert bad[0] in (3, 4) and "malformed JSON" in bad[1]
    found = read(write(tmp_path / "f.json", f"[{a} {b}, {c}]"))  # a comma is missing
    assert "delimiter" in found[0][1] and [x[1]["id"] for x in found[1:]] == ["b", "c"]


def test_a_comma_before_the_end_of_an_array_is_no_json(tmp_path):
    a, b = (json.dumps(llava(i)) for i in "ab")
    *rows, last = read(write(tmp_path / "f.json", f"[\n{a},\n{b},\n]"))
    assert [value["id"] for _, value in rows] == ["a", "b"]
    assert last[0] == 4 and "a comma before the end of the array" in last[1]
    assert [at for at, _ in read(write(tmp_path / "f.json", f"[\n{a} {b},\n]"))] == [2, 2, 3]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("[\n\n", 3, "not closed"),
        ('[\n{"id": "a"', 2, "malformed JSON"),
        ("[] x", 1, "after the end"),
        ('{\n "id": "a",\n "conversations": []\n}', 1, "one object; expected an array"),
        ('{"images": [\n1], "annotations": []}', 1, "its keys are images, annotations"),
        ("hello", 1, "malformed JSON"),
    ],
)
def test_files_that_are_no_rows(tmp_path, text, line, what):
    found = read(write(tmp_path / "f.json", text))
    assert found[0][0] == line and what in found[0][1] and len(found) == 1


@pytest.mark.parametrize("text", ["", "[]", " \n", "[ ]\n", b"\xef\xbb\xbf"])
def test_empty_files(tmp_path, text):
    assert read(write(tmp_path / "f.json", text)) == []


def test_marks_and_line_ends_of_windows(tmp_path):
    """A byte order mark in front, one in the middle where files were joined, and CRLF."""
    row = json.dumps({"id": 1})
    for text in (f"\ufeff[{row},\r\n{row}]\r\n", f"\ufeff{row}\r\n\ufeff{row}\r\n"):
        assert read(write(tmp_path / "f.json", text)) == [(1, {"id": 1}), (2, {"id": 1})]


def test_text_that_is_no_utf8_costs_its_row(tmp_path):
    """Mixed encodings: the bytes stay visible as half surrogate pairs, which no row may hold."""
    lines = b'{"id": 1}\n{"id": "\xe9"}\n{"id": "\xc3\xa9"}\n'
    assert read(write(tmp_path / "f.jsonl", lines)) == [(1, {"id": 1}), (2, {"id": "\udce9"}), (3, {"id": "é"})]
    array = b"[" + lines.replace(b"\n", b",", 2) + b"]"
    assert [value["id"] for _, value in read(write(tmp_path / "f.json", array))] == [1, "\udce9", "é"]


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\xff\xfe[\x00", "UTF-16"),
        (b"PK\x03\x04....", "zip archive"),
        (b"\x1f\x8b\x08.", "gzip"),
        (b"PAR1....", "Parquet"),
    ],
)
def test_other_files_are_named(tmp_path, head, what):
    with pytest.raises(DataError, match=what) as caught:
        read(write(tmp_path / "f.json", head))
    assert caught.value.fix and caught.value.where.endswith("f.json")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "gone.json")


@pytest.mark.parametrize("array", [True, False])
def test_a_row_that_never_ends_is_refused_and_the_next_one_read(tmp_path, monkeypatch, array):
    monkeypatch.setattr(jsonfile, "LONGEST", 1 << 16)
    monkeypatch.setattr(jsonfile, "_PIECE", 1 << 12)
    rows = [json.dumps(llava("a")), json.dumps(llava("long", answer="x" * (1 << 18))), json.dumps(llava("c"))]
    text = "[" + ",\n".join(rows) + "]" if array else "\n".join(rows)
    found = read(write(tmp_path / "f", text))
    assert [x[1]["id"] for x in found if isinstance(x[1], dict)] == ["a", "c"]
    assert [x for x in found if isinstance(x[1], str)] == [
        (2, f"the {'row' if array else 'line'} is longer than 0 MiB")
    ]


@pytest.mark.parametrize("broken", [0, 1])
def test_rows_behind_a_malformed_one_are_read_whatever_they_begin_with(tmp_path, broken):
    rows = [json.dumps({"question": f"q{k}", "answer": "a"}) for k in range(4)]
    rows[broken] = rows[broken].replace(",", "")
    found = read(write(tmp_path / "f.json", "[" + ",\n".join(rows) + "]"))
    assert [value["question"] for _, value in found if isinstance(value, dict)] == [
        f"q{k}" for k in range(4) if k != broken
    ]
    assert len(found) == 4


def test_fast_enough_for_large_files(tmp_path):
    """20,000 rows on one line each within seconds: pieces, line counting and searching are linear."""
    path = write(tmp_path / "f.json", json.dumps([llava(f"r{k}") for k in range(20_000)], indent=0))
    found = read(path)
    assert len(found) == 20_000 and found[-1][0] > found[0][0]
