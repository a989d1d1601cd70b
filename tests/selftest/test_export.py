"""The run behind the export check; the check itself is in test_checks.py."""

import pytest

from mcit.core.errors import PlanError
from mcit.core.schema import EngineConfig
from mcit.selftest.export import export_differences, run_config
from mcit.selftest.kit import make_kit


def test_every_number_of_ranks_shares_its_steps_evenly():
    for ranks in (1, 2, 3, 8):
        config = run_config(ranks, {"kind": "zero2"})
        assert config.stages[0].optim.batch % ranks == 0 and config.engine.kind == "zero2"


def test_without_something_to_export_with_nothing_is_trained(tmp_path):
    with pytest.raises(PlanError, match="no function to export with"):
        export_differences(make_kit(EngineConfig(device="cpu"), tmp_path))


def test_a_run_that_learns_nothing_cannot_show_a_difference(tmp_path, monkeypatch):
    from mcit.engine import plain

    monkeypatch.setattr(plain, "lr_factor", lambda *args: 0.0)
    kit = make_kit(
        EngineConfig(device="cpu"), tmp_path, environment={"versions": {}, "threads": 1}, export=copy_of_base
    )
    with pytest.raises(PlanError, match="too little to compare"):
        export_differences(kit)


def copy_of_base(run, *, stage, kind, out):
    from mcit.export.export import export_stage

    export_stage(run, stage=stage, kind=kind, out=out)
