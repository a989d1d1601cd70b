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
