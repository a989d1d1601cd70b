"""Measurements of probes in reports, from a run's files."""

import json

import pytest

from mcit.core.errors import StateError
from mcit.core.files import write_text
from mcit.core.stored import write_manifest
from mcit.report.matrix import measure
from mcit.report.page.html import charts_of, probe_words, write_page
from mcit.report.probes import read_probes, rho, score_rows
from mcit.report.tables import full_report, markdown

SETTINGS = {"every": 1, "dense": 30, "later": 10, "rows": 8}


def line(step, values, probe="stability", **more):
    entries = {task: {"loss": 1.0, "accuracy": accuracy, "rows": 8} for task, accuracy in values.items()}
    content = (
        {"tasks": entries, **more} if probe == "stability" else {t: {**e, "valid": 1.0} for t, e in entries.items()}
    )
    return {"step": step, "probe": probe, "seconds": 0.5, "values": content}


def put(run, folder, lines, **progress):
    run.progress(folder, **progress)
    write_text(run.root / "stages" / folder / "probes.jsonl", "".join(json.dumps(one) + "\n" for one in lines))
    write_manifest(run.root / "stages" / folder)


@pytest.fixture
def probed(fake_run):
    run = fake_run([["a"], ["b"]])
    put(run, "01-s1", [line(0, {"a": 0.0}, settings=SETTINGS), line(2, {"a": 0.75})], steps=2, seconds=10.0)
    answers = {"a": {"accuracy": 0.25, "valid": 0.5, "rows": 4}}
    late = {"step": 2, "probe": "stability", "left_out": "0.9 s would pass 10% of 1.0 s"}
    end = line(3, {"a": 0.5, "b": 0.5}, answers=answers, norms={"plasticity": 2.0, "ewc": 0.5})
    generation = line(3, {"a": 0.5}, probe="generation")
    put(run, "02-s2", [line(0, {"a": 0.75, "b": 0.0}, settings=SETTINGS), line(1, {"a": 0.25, "b": 0.25}), late, end,
                       generation], steps=3, seconds=10.0)  # fmt: skip
    return run


def test_metrics_gaps_and_shares(probed):
    found = read_probes(probed.root)
    stability = found["stability"]
    assert stability["metrics"]["min_acc"] == 0.25 and stability["metrics"]["wc_acc"] == 0.375
    assert stability["metrics"]["wf"]["10"] == pytest.approx(0.25) and stability["metrics"]["forg"] == 0.25
    assert [(g["stage"], g["drop"], g["recovery"], g["step"]) for g in stability["gaps"]] == [(2, 0.5, 0.25, 1)]
    assert [(s["probe"], s["made"], s["left_out"], s["share"]) for s in found["shares"]] == [
        ("stability", 2, 0, 0.1), ("stability", 3, 1, pytest.approx(0.15)), ("generation", 1, 0, 0.05),
    ]  # fmt: skip
    assert [one["run_step"] for one in found["lines"]["stability"]] == [0, 2, 2, 3, 4, 5]
    assert score_rows(found, str) == [
        ["02-s2", "3", "stability", "a", "0.25", "0.5", "4"],
        ["02-s2", "3", "generation", "a", "0.5", "1.0", "8"],
    ]


def test_a_probe_on_a_task_that_no_stage_trained_yet(fake_run):
    """``stability`` of a later task alone measures nothing in the first stage; the report says so and is made."""
    run = fake_run([["a"], ["b"]])
    put(run, "01-s1", [line(0, {}, settings=SETTINGS), line(2, {})], steps=2, seconds=10.0)
    assert read_probes(run.root)["stability"]["standard_error"] is None
    assert "8 rows per task at most (nothing was measured yet)" in markdown(full_report(run.root))
    write_page([run.root], run.root / "page.html")
    put(run, "02-s2", [line(0, {}, settings=SETTINGS), line(2, {"b": 0.5})], steps=2, seconds=10.0)
    assert read_probes(run.root)["stability"]["standard_error"] == pytest.approx(0.5 / 8**0.5)


def test_window_step_and_rows_are_always_printed(probed):
    text = markdown(full_report(probed.root))
    assert "ρ = 1 in the first 30 steps of a stage, then 10; 8 rows per task at most" in text
    assert "| WF, largest fall within w = 10 evaluations | 0.250 |" in text
    assert "| 2 | a | 0.750 | 0.250 | 1 | 0.500 |" in text
    assert "| 02-s2 | stability | 3 | 1 | 1.500 | 0.150 |" in text
    assert rho({**SETTINGS, "dense": None}) == "ρ = 1"


def test_the_page_has_answers_planted_rows_texts_and_what_was_left_out(fake_run, probed, tmp_path):
    """Canaries: 3 of 4 recognised, 1 recalled, 0 steps after they were planted; texts: 6 of 8 and 2 of 8 after 3 exposures."""
    group = {"stage": "01-s1", "since": 0, "exposures": 2, "kind": "text", "rows": 4, "recognised": 3, "recalled": 1}
    texts = {"exposures": 3, "since": 10, "rows": 8, "recognised": 6, "exact": 2, "rouge_l": 0.5, "full_rouge_1": 0.75}
    lines = [
        {"step": 2, "probe": "canary", "seconds": 0.1, "values": {"groups": [group]}},
        {"step": 2, "probe": "memory", "seconds": 0.1, "values": {"strings": texts}},
    ]
    run = fake_run([["a"], ["b"]], "asked")
    put(run, "01-s1", lines, steps=2, seconds=10.0)
    page = write_page([run.root], tmp_path / "page.html")[0].read_text()
    for cell in ("0.750 <span", "0.250 <span", ">strings<", ">0.500<", "0.750<"):
        assert cell in page[page.index(">Canaries</h2>") :], cell
    page = write_page([probed.root], tmp_path / "page.html")[0].read_text()
    took = page[page.index("What probes took") :]
    assert "<td>02-s2</td>" in took.replace(' class="short"', "") and "left out" in took
    assert "Generated answers inside the stages</h2>" in page


def test_curves_on_the_page(probed):
    report = full_report(probed.root)
    drawn = charts_of([probed.root], [report], [measure(probed.root)])
    points = [p for p in drawn["stability"]["data"]["values"] if p["task"] == "a"]
    assert [(p["step"], p["accuracy"]) for p in points] == [
        (0, 0),
        (2, 0.75),
        (2, 0.75),
        (3, 0.25),
        (5, 0.5),
    ]
    assert {p["gradient"] for p in drawn["norms"]["data"]["values"]} == {"plasticity", "ewc"}
    assert len(drawn["generation"]["data"]["values"]) == 1
    assert probe_words(report["probes"])["gaps"] == [["2", "a", "0.750", "0.250", "1", "0.500"]]


def test_a_run_without_probes_and_one_that_was_edited(fake_run, probed):
    path = probed.root / "stages" / "02-s2" / "probes.jsonl"
    path.write_text(path.read_text().replace("0.25", "0.26"))
    with pytest.raises(StateError, match="checksum differs"):
        read_probes(probed.root)
    plain = fake_run([["a"]], name="plain").progress("01-s1")
    assert read_probes(plain.root) == {} and probe_words({}) is None
