"""scripts/restor_study.py: its sides are valid configs, its table is right."""

import pytest

from mcit.plan.plan import read_config
from scripts import restor_study as study


@pytest.mark.parametrize("name", list(study.SIDES))
def test_every_side_is_a_config_that_differs_in_its_forget_stage_alone(name):
    first, _ = read_config(study.CONFIG, study.overrides("npo", 1))
    config, _ = read_config(study.CONFIG, study.overrides(name, 1))
    own = study.FORGET - 1
    assert [s for k, s in enumerate(config.stages) if k != own] == [s for k, s in enumerate(first.stages) if k != own]
    used = ["bounded_forget"] if name == "control" else name.split(" + ")
    assert config.seed == 1 and [m["use"] for m in study.SIDES[name]] == used
    assert config.stages[own].methods and config.stages[own].forget == "demo/naming-false"


def test_the_table_by_hand():
    """Clean 4 of 4, corrupted 0 of 4, then 2 and 3: recovery .5 and .75; a side whose truth was never lost has none."""
    one = {
        "ids": ["a", "b", "c", "d"],
        "true": {"1": [1, 1, 1, 1], "2": [0, 0, 0, 0], "3": [1, 1, 0, 0], "4": [1, 1, 1, 0]},
        "rest": {"1": 90.0, "2": 70.0, "3": 80.0, "4": 85.0},
        "residual": {"2": 1.0, "3": 0.5, "4": 0.25},
        "said": {"2": 100.0, "3": 25.0, "4": 50.0},
    }
    kept = {**one, "true": dict.fromkeys("1234", [1, 1, 1, 1])}
    rows = study.table({"npo": [one], "ga": [kept]}).splitlines()
    assert rows[-2].startswith("| `npo` | 1 | 100.0 | 0.0 | 50.0 | 0.50 [0.") and "| 75.0 | 0.75 [" in rows[-2]
    assert (
        rows[-2].endswith("| 100 / 25 / 50 | 1.00 / 0.50 / 0.25 | 70 / 80 / 85 |") and "| – | 100.0 | – |" in rows[-1]
    )
    assert study.table({}) == "Nothing is finished yet."


def test_a_begun_run_goes_on_and_a_failed_one_writes_nothing(tmp_path, monkeypatch):
    from mcit.cli import main as cli

    calls = []
    monkeypatch.setattr(cli, "main", lambda call: calls.append(call) or 3)
    monkeypatch.setattr("sys.argv", ["restor_study.py", "--home", str(tmp_path), "--only", "npo", "--seeds", "1"])
    with pytest.raises(SystemExit, match="run the control of this seed first"):
        study.main()
    study.result_file(tmp_path / "restor", "control", 1).write_text("{}")
    for begun in (False, True):
        if begun:
            run = tmp_path / "restor-runs" / "restor-npo-s1-20260101"
            run.mkdir(parents=True)
            (run / "manifest.json").write_text("{}")
        with pytest.raises(SystemExit):
            study.main()
    assert calls[0][:4] == ["run", "demo-restor", "--runs-dir", str(tmp_path / "restor-runs")]
    assert calls[1] == ["resume", str(run)] and not study.result_file(tmp_path / "restor", "npo", 1).exists()


@pytest.mark.slow
def test_restor_on_the_tiny_model_measures_recovery_and_residual_corruption(tmp_path, monkeypatch):
    """Red is learned, called blue, and the false answer forgotten: after npo it is no longer the likelier one."""
    from mcit.report.tables import full_report, markdown

    for name, value in (("CONFIG", "tiny-restor"), ("TASK", "word-red"), ("REST", "letter")):
        monkeypatch.setattr(study, name, value)
    study.one(tmp_path, "control", 1)
    one = study.one(tmp_path, "npo", 1)
    control, own = (study.run_of(tmp_path, name, 1) for name in ("control", "npo"))
    assert [p.suffix for p in sorted((own / "stages").iterdir())] == [".json", ".json", "", ""] and control != own
    assert [sum(one["true"][k]) / len(one["ids"]) for k in "12"] == [1.0, 0.0]
    assert one["residual"]["2"] == 1.0 and one["residual"]["3"] < 1.0 and one["said"]["3"] < one["said"]["2"]
    assert study.table({"npo": [one]}).splitlines()[-1].startswith("| `npo` | 1 | 100.0 | 0.0 |")
    report = full_report(tmp_path / "restor-runs" / one["run"])
    (entry,) = report["recovery"]
    after = entry["after"]["03-forget"]
    assert (entry["clean"], entry["corrupted"]) == (100, 0) and after["recovery"][0] == after["accuracy"] / 100
    assert "Recovery of word-red, which 02-corrupt took from 100.0 to 0.0 %" in markdown(report)
