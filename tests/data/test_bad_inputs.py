"""What users' folders really hold: each fault has a place and a cure, costs only its rows, and ends with exit code 4."""

import json

import pytest

from mcit.cli.main import main
from tests.fakes import benchmarks
from tests.fakes.recipes import recipe_file, rows
from tests.fakes.rows import llava


def checked(capsys, path):
    """Exit code and report of ``mcit data check --json``."""
    code = main(["data", "check", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert all(
        p["where"] and p["what"] and p["fix"] for key in ("fatal", "bad", "summary", "warnings") for p in found[key]
    )
    return code, found


def test_an_archive_with_missing_pictures(tmp_path, capsys, monkeypatch):
    """The list, how many, below which folders, and of which task."""
    monkeypatch.setenv("MCIT_DATA", str(tmp_path))
    benchmarks.coin(tmp_path / "coin", ["GQA", "VQAv2"], train=8)
    for k in range(5):
        (tmp_path / "coin" / "cl_dataset" / "GQA" / "images" / f"{k:06d}.jpg").unlink()
    code, found = checked(capsys, "coin/gqa")
    assert code == 4 and len(found["bad"]) == 5 and found["counts"] == {"train": 3, "validation": 0, "test": 3}
    (said,) = found["summary"]
    assert (
        said["where"] == "task gqa"
        and "5 of 8 rows lack a picture" in said["what"]
        and "./GQA/images 5" in said["what"]
    )
    assert "GQA/images/000000.jpg does not exist" in found["bad"][0]["what"]
    assert checked(capsys, "coin/vqav2")[0] == 0


def test_the_files_of_the_splits_swapped_or_twice(tmp_path, capsys):
    path = recipe_file(tmp_path, train=rows(6), test=rows(6))
    code, found = checked(capsys, path)
    assert (
        code == 4
        and "6 of 6 rows ask what the test asks: is one file the other split's?" in found["summary"][0]["what"]
    )
    assert len(found["bad"]) == 6 and found["counts"]["test"] == 6


FOREIGN = {
    "COCO": (
        '{"images": [{"id": 1}],\n "annotations": [], "categories": []}',
        "its keys are images, annotations, categories",
    ),
    "VQA": ('{"dataset_type": "val",\n "data": [{"question_id": 1}]}', "its keys are dataset_type, data"),
    "GQA": ('{"question": "Is it red?", "imageId": "1", "fullAnswer": "Yes"}', "its keys are 'question', 'imageId'"),
    "ShareGPT": (
        '{"conversations": [{"from": "user", "value": "q"}, {"from": "chatgpt", "value": "a"}]}',
        "turn 1 is from 'user'",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_annotations_of_another_benchmark(tmp_path, capsys, name):
    path = recipe_file(tmp_path, train=[])
    (tmp_path / "train.json").write_text(FOREIGN[name][0])
    code, found = checked(capsys, path)
    assert (
        code == 4
        and FOREIGN[name][1] in found["bad"][0]["what"]
        and found["bad"][0]["where"].startswith("train.json:1")
    )


def test_answers_of_another_task(tmp_path, capsys):
    sources = [{"kind": "llava", "path": "train.json", "images": "images", "style": "box"}]
    code, found = checked(capsys, recipe_file(tmp_path, train=rows(3), sources=sources))
    assert code == 4 and len(found["bad"]) == 3 and "the box 'no' is not [x1, y1, x2, y2]" in found["bad"][0]["what"]


def test_question_ids_that_repeat(tmp_path, capsys):
    test = [{"question_id": k % 2, "text": f"q{k}", "answer": "a"} for k in range(3)]
    code, found = checked(capsys, recipe_file(tmp_path, train=rows(2), test=test))
    assert code == 4 and [p["where"] for p in found["bad"]] == ["test.json:4:0"]
    assert (
        "id '0' is already used at test.json:2" in found["bad"][0]["what"] and "ids: number" in found["bad"][0]["fix"]
    )


@pytest.mark.parametrize(
    "answer",
    ["[0.2, 0.1, 1.2, 0.5]", "[0.5, 0.1, 0.2, 0.9]", "[0.1, 0.9, 0.2, 0.2]", "[-0.1, 0, 1, 1]", "[10, 20, 30, 40]"],
)
def test_boxes_outside_or_reversed(tmp_path, capsys, answer):
    code, found = checked(capsys, recipe_file(tmp_path, train=[*rows(1), llava("b", "q", answer, style="box")]))
    assert code == 4 and "is not [x1, y1, x2, y2] with 0 <= x1 < x2 <= 1" in found["bad"][0]["what"]


def test_not_a_number(tmp_path, capsys):
    path = recipe_file(tmp_path, train=[*rows(2), llava("b", "q", "X"), llava("c", "q2", meta={"score": "X"})])
    (tmp_path / "train.json").write_text((tmp_path / "train.json").read_text().replace('"X"', "NaN"))
    code, found = checked(capsys, path)
    assert code == 4 and [(p["where"], p["what"]) for p in found["bad"]] == [
        ("train.json:4:b", "NaN is not a JSON number"),
        ("train.json:5:c", "NaN is not a JSON number"),
    ]


def test_mixed_encodings_cost_their_rows(tmp_path, capsys):
    path = recipe_file(tmp_path, train=rows(3))
    data = (tmp_path / "train.json").read_bytes().replace(b"r 1?", "Größe?".encode("latin-1"))
    (tmp_path / "train.json").write_bytes(data)
    code, found = checked(capsys, path)
    assert code == 4 and [p["what"] for p in found["bad"]] == ["is not UTF-8 text"] and found["counts"]["train"] == 2


def test_marks_and_line_ends_of_windows_are_no_fault(tmp_path, capsys):
    path = recipe_file(tmp_path, train=rows(3))
    text = (tmp_path / "train.json").read_text().replace("\n", "\r\n")
    (tmp_path / "train.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    code, found = checked(capsys, path)
    assert code == 0 and found["counts"]["train"] == 3


def test_a_line_of_100_megabytes(tmp_path, capsys):
    """Refused without being held, its neighbours read."""
    path = recipe_file(tmp_path, train=[])
    first, last = (json.dumps(row).encode() for row in rows(2))
    with open(tmp_path / "train.json", "wb") as file:
        file.write(first + b'\n{"id": "long", "text": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + last + b"\n")
    code, found = checked(capsys, path)
    assert code == 4 and [(p["where"], p["what"]) for p in found["bad"]] == [
        ("train.json:2", "the line is longer than 16 MiB")
    ]
    assert found["counts"]["train"] == 2


def test_wrong_files_are_whole_sources(tmp_path, capsys):
    path = recipe_file(tmp_path, train=rows(1))
    for data, what in ((b"PK\x03\x04zip", "is a zip archive"), ("[]".encode("utf-16"), "is UTF-16 text")):
        (tmp_path / "train.json").write_bytes(data)
        code, found = checked(capsys, path)
        assert code == 4 and what in found["fatal"][0]["what"]
