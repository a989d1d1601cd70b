"""Gates in reports, from their records."""

import pytest

from mcit.core.errors import StateError
from mcit.core.files import write_text
from mcit.core.stored import write_sealed
from mcit.report.gates import decision_lines, read_gates, threshold_rows
from mcit.report.tables import full_report, markdown
from tests.runs.test_gates import RECORD


def test_thresholds_and_decisions(fake_run):
    run = fake_run([["a"], ["b"]]).shares(1, "a", 5)
    assert read_gates(run.root) == [] and "## Gates" not in markdown(full_report(run.root))
    (run.root / "gates").mkdir()
    write_sealed(run.root / "gates" / "02-s2.json", RECORD)
    records = read_gates(run.root)
    assert threshold_rows(records) == [
        ["02-s2", "locality", "at least 0.95 share", "0.950 (0.863 to 0.983)", "60", "inconclusive"],
        ["02-s2", "accuracy of a", "at most 3 points", "–", "0", "not measured"],
    ]
    assert decision_lines(records) == [
        f"02-s2: inconclusive; aside by gate at 2026-01-01; gate file sha256 {'a' * 12}…; ended at step 3: gate: low"
    ]
    assert "| 02-s2 | locality |" in markdown(full_report(run.root))
    write_text(
        run.root / "gates" / "02-s2.json", (run.root / "gates" / "02-s2.json").read_text().replace("0.95", "0.90")
    )
    with pytest.raises(StateError, match="is not the record of a gate as it was written"):
        read_gates(run.root)
