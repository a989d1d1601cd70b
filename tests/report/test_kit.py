"""What the report makes of the kit's records, from files alone."""

import csv
import io

import pytest

from mcit.core.errors import StateError
from mcit.core.stored import write_sealed
from mcit.evals.memorisation import forget_quality
from mcit.report.kit import judge_table, kit_csv, kit_table, membership_table, read_kits
from mcit.report.tables import full_report, markdown
from mcit.runs.ledger import Ledger
from tests.fakes.run_dir import create


def record(truth, min_k, **more):
    forget = {"probability": 0.2, "exact_memorisation": 0.5, "extraction_strength": 0.25, "truth_ratio": 0.3}
    return {
        "settings": "0" * 64,
        "lineage": "L",
        "forget": {**forget, "refusal": 0.5, "gibberish": 0.0, "rouge_recall": 0.1, "attack_success": 0.0},
        "truth": truth,
        "membership": {"min_k": min_k},
        "near": {"retained": {"n": 10, "refusal": 0.2, "gibberish": 0.1, "abnormal": 0.3}},
        "probability": {"rest": 0.6},
        "made": {"perturbed": 4, "paraphrase_is_answer": 3, "without": 0},
        "rows": {"forget": 4, "holdout": 4},
        **more,
    }


@pytest.fixture
def run(fake_run):
    run = fake_run([["all"], ["rest"], ["new"]])
    run.plan["stages"][1]["forget"] = run.plan["forget_tasks"] = ["dog"]
    create(run.root, run.plan)
    run.shares(2, "rest", 9)
    ours, gold = [0.1, 0.2, 0.3, 0.4], [0.35, 0.5, 0.6, 0.7]
    judge = {"forget": {"n": 4, "refusal": 0.5, "gibberish": 0.0, "abnormal": 0.5, "unsafe": 0.25, "agreement": 0.75}}
    write_sealed(run.root / "kit" / "after-02" / "02-s2" / "kit.json", record(ours, 0.2, judge=judge))
    write_sealed(run.root / "kit" / "gold" / "02-s2" / "kit.json", record(gold, 0.5))
    return run


def test_quality_leak_and_utility_by_hand(run):
    entry, gold = read_kits(run.root, mode="strict")
    assert (entry["after"], gold["after"]) == ("02-s2", "gold run")
    assert entry["forget_quality"] == pytest.approx(forget_quality([0.1, 0.2, 0.3, 0.4], [0.35, 0.5, 0.6, 0.7])[1])
    assert entry["priv_leak"] == pytest.approx(60.0) and gold["priv_leak"] == 0.0
    assert entry["utility"] == pytest.approx(2 / (1 / 0.6 + 1 / 0.9)) and entry["retained"] == 0.3
    assert entry["four_bit"] is None and entry["decoupled"] is None


def test_tables_leave_out_what_nobody_measured(run):
    entries = read_kits(run.root, mode="strict")
    show = lambda value: "–" if value is None else f"{value:.2f}"
    head, rows = kit_table(entries, show)
    assert (
        "SARR retained" in head and "SARR decoupled" not in head and rows[0][head.index("forget quality p")] == "0.23"
    )
    assert membership_table(entries, show)[1][0] == ["02-s2", "02-s2", "0.20"]
    assert judge_table(entries, show)[1] == [["02-s2", "02-s2", "forget", "4", "0.50", "0.00", "0.25", "0.75"]]
    lines = list(csv.DictReader(io.StringIO(kit_csv(entries))))
    assert lines[0]["priv_leak"] == "60" and lines[0]["decoupled"] == ""
    page = markdown(full_report(run.root))
    assert "What the judge said" in page and "3 rows have no paraphrase" in page


def test_no_record_no_section(fake_run):
    run = fake_run([["a"]]).shares(1, "a", 5)
    assert read_kits(run.root, mode="strict") == [] and "What is left" not in markdown(full_report(run.root))


def test_a_record_that_is_gone_is_named(run):
    ledger = Ledger(run.root / "ledger.jsonl")
    for name, told in (
        ("after-02", lambda: ledger.append("kit", after=2, stage="02-s2")),
        ("gold", lambda: ledger.append("gold", stage="02-s2", after=1)),
    ):
        kept = run.root / "kit" / name / "02-s2" / "kit.json"
        data = kept.read_bytes()
        kept.unlink()
        read_kits(run.root, mode="strict")  # it is being measured
        told()
        with pytest.raises(StateError) as error:
            read_kits(run.root, mode="strict")
        assert error.value.problems[0].where == str(kept) and "is gone" in error.value.what
        kept.write_bytes(data)
