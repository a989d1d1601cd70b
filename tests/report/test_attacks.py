import pytest

from mcit.core.errors import StateError
from mcit.core.stored import write_sealed
from mcit.report.attacks import attack_lines, read_attacks
from mcit.report.tables import full_report, markdown
from mcit.runs.ledger import Ledger
from tests.fakes.run_dir import create

RECORD = {
    "stage": "01-s1",
    "kind": "relearn",
    "before": 65.0,
    "forgotten": 26.0,
    "possible": True,
    "settings": {"rank": 64},
    "results": [{"rows": 20, "accuracy": 30.0, "robustness": 0.8974}],
    "controls": {"base": [{"rows": 0, "accuracy": 1.0}, {"rows": 20, "accuracy": 5.0}]},
    "area": 72.0,
}


def test_read_shown_and_said(fake_run):
    run = fake_run([["a"]]).shares(1, "a", 5)
    assert read_attacks(run.root) == [] and "## Attacks" not in markdown(full_report(run.root))
    run.plan["stages"][0]["forget"] = run.plan["forget_tasks"] = ["dog"]
    create(run.root, run.plan)
    write_sealed(run.root / "attacks" / "01-s1" / "relearn.json", RECORD)
    write_sealed(run.root / "attacks" / "01-s1" / "unload.json", {**RECORD, "kind": "unload", "possible": False})
    page = markdown(full_report(run.root))
    assert "| 01-s1 | relearn | 20 | 65.00 | 26.00 | 30.00 | 0.90 | base 5.00 |" in page
    assert "unload: nothing to take off" in page
    assert "30.00 % attacked; robustness 0.90; controls base 5.00" in attack_lines([RECORD])[0]


def test_a_record_that_is_gone_is_named(fake_run):
    run = fake_run([["a"]]).shares(1, "a", 5)
    run.plan["stages"][0]["forget"] = run.plan["forget_tasks"] = ["dog"]
    create(run.root, run.plan)
    Ledger(run.root / "ledger.jsonl").append("attack", stage="01-s1", kind="relearn")
    folder = run.root / "attacks" / "01-s1"
    assert read_attacks(run.root) == []  # somebody removed all of it
    (folder / "relearn-20").mkdir(parents=True)
    with pytest.raises(StateError) as error:
        read_attacks(run.root)
    assert error.value.problems[0].where == str(folder / "relearn.json") and "is gone" in error.value.what
