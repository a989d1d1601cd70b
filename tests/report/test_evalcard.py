from mcit.report.evalcard import run_rows

REPORT = {
    "metrics": {"mfn": 50.0, "mft": 60.0, "bwt_earlier": None, "forgetting": 20.0},
    "format_validity": [[100.0, None], [90.0, 70.0]],
    "certificates": [{"audit": {"method_state_bytes": 1}}, {"audit": {"method_state_bytes": 2048}}],
}


def test_what_was_not_measured_is_left_out():
    rows = dict(run_rows(REPORT, "{:.2f}".format))
    assert rows["mean at the end (MFN), %"] == "50.00" and not any("BWT" in name for name in rows)
    assert rows["answers in another form at the end, mean over tasks, %"] == "20.00"
    assert rows["state of methods kept between stages, bytes"] == "2,048"


def test_a_run_without_scores():
    metrics = dict.fromkeys(REPORT["metrics"])
    assert run_rows({"metrics": metrics, "format_validity": [], "certificates": []}, str) == []


def test_a_benchmark_that_no_stage_trains_is_compared_with_the_base():
    """Over both stages; not where the last stage was not asked to keep it."""
    slices = [
        {"stage": "01-a", "retention": [{"task": "general", "before": 62.0, "after": 61.0}]},
        {"stage": "02-b", "retention": [{"task": "a", "before": 9.0, "after": 9.0}]},
    ]
    slices[1]["retention"].append({"task": "general", "before": 61.0, "after": 58.5})
    costs = [{"stage": "01-a", "committed": True}, {"stage": "02-b", "committed": True}]
    report = {**REPORT, "slices": slices, "costs": costs}
    assert dict(run_rows(report, "{:.2f}".format))["drop of general against the base, points"] == "3.50"
    slices[1]["retention"].pop()
    assert not [name for name, _ in run_rows(report, "{:.2f}".format) if "against the base" in name]


def test_what_is_recognised_and_recalled_at_0_10_100_steps_and_at_the_end():
    def canary(since, recognised):
        groups = [{"stage": "01-a", "since": since, "rows": 2, "recognised": n, "recalled": 0} for n in recognised]
        return {"values": {"groups": groups}}

    def text(exposures, since, exact):
        return {"values": {"t": {"exposures": exposures, "since": since, "rows": 4, "recognised": 4, "exact": exact}}}

    lines = {
        "canary": [canary(None, (0, 0)), canary(0, (2, 1)), canary(1, (2, 2)), canary(10, (1, 1)), canary(37, (0, 1))],
        "memory": [text(0, 0, 0), text(1, 0, 1), text(2, 0, 3), text(2, 100, 2)],
    }
    rows = dict(run_rows({**REPORT, "probes": {"stability": None, "lines": lines}}, str))
    shown = {name: cell.split()[0] for name, cell in rows.items() if "more steps" in name}
    assert shown == {
        **{
            f"canaries of 01-a recognised after {k} more steps": v
            for k, v in ((0, "0.750"), (10, "0.500"), (37, "0.250"))
        },
        **{f"canaries of 01-a recalled after {k} more steps": "0.000" for k in (0, 10, 37)},
        **{f"texts of t recognised after {k} more steps": "1.000" for k in (0, 100)},
        "texts of t recalled after 0 more steps": "0.750",
        "texts of t recalled after 100 more steps": "0.500",
    }
