"""Parts of an audit that need no model; whole audits are in tests/evals/test_certificate.py."""

from mcit.core.errors import Problem, StateError
from mcit.evals.audit import Part, audit
from tests.fakes.run_dir import whole


def test_a_part_counts_and_keeps_every_problem(tmp_path):
    part = Part("x")
    part.check(lambda: None)
    part.check(lambda: iter([Problem("a", "b", "c")]))

    def fails():
        raise StateError("d", where="e", fix="f")

    part.check(fails)
    part.check(lambda: (tmp_path / "none").read_bytes())
    assert part.checked == 4 and [p.what for p in part.problems] == ["b", "d", "file is missing"]


def test_a_run_whose_ledger_is_gone(tmp_path):
    run = whole(tmp_path)
    assert [p for part in audit(run) for p in part.problems] == []
    run.layout.ledger.unlink()
    (problem,) = [p for part in audit(run) for p in part.problems]
    assert (problem.where, problem.what) == (str(run.layout.ledger), "file is missing")
