"""Certificates and the audit on a run of the tiny model with a gate; everything starts from copies of one run."""

import json
import shutil

import pytest

from mcit.cli.main import main
from mcit.core.files import read_json, write_bytes
from mcit.core.stored import write_sealed
from mcit.evals.certificate import NOT_ISSUED, card_rows, certificate, certify, read_certificates, timeless
from mcit.export import adapter
from mcit.runs.run import Run
from mcit.train import sequence
from scripts.inject.faultpoints import Killed
from tests.train.test_gating import PASSES, go, opened, planned

FIRST, SECOND, THIRD = "01-letter", "02-yesno", "03-word"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        home = tmp_path_factory.mktemp("whole")
        plan = planned(home, PASSES)
        run = opened(plan, home)
        go(plan, run)
        assert main(["export", str(run.layout.root), "--stage", "1"]) == 0
        return plan, run


@pytest.fixture
def copied(whole, tmp_path):
    plan, run = whole
    root = tmp_path / run.layout.root.name
    shutil.copytree(run.layout.root, root)
    return plan, Run(root)


def audited(run, capsys, *options):
    capsys.readouterr()
    code = main(["audit", str(run.layout.root), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def told(run, capsys, *options):
    code, found = audited(run, capsys, "--no-data", *options)
    assert code == 5
    return [f"{p['where'].removeprefix(str(run.layout.root) + '/')}: {p['what']}" for p in found["problems"]]


def forged(path, **changes):
    """With a new checksum, as somebody who knows how would."""
    record = {key: value for key, value in read_json(path).items() if key != "seal"}
    write_sealed(path, {**record, **changes})


def test_one_certificate_per_stage_with_its_fields(whole):
    _, run = whole
    found = read_certificates(run)
    assert [one["stage"] for one in found] == [FIRST, SECOND, THIRD]
    second = found[1]
    assert second["run"] == run.ledger.events("created")[0]["id"]
    assert second["target"]["tasks"] == ["yesno"]
    assert second["target"]["recipes"] == {"tiny/yesno": run.plan()["recipes"]["tiny/yesno"]}
    assert second["method"]["settings"]["methods"][0]["name"] == "replay"
    assert second["verification"]["success"]["n"] == 4 and second["verification"]["drawdown_points"]["n"] == 4
    assert set(second["regression"]["scores"]) == {"letter", "yesno"}
    assert second["regression"]["retention"][0]["task"] == "letter"
    assert second["rollback"]["stage"] == FIRST and second["rollback"]["weights"] == found[0]["audit"]["weights"]
    assert second["audit"]["gate"]["verdict"] == "pass" and second["audit"]["approved_by"] == "gate"
    assert found[0]["audit"]["approved_by"] is None and found[0]["rollback"]["stage"] is None
    logged = [e["stage"] for e in run.ledger.events("certified")]
    assert logged == [FIRST, SECOND, THIRD], "issued once each"
    row = card_rows(found)[1]
    assert row[0] == SECOND and row[-2:] == ["pass; promoted by gate", f"`{second['id'][:16]}`"]


def test_the_audit_of_an_untouched_run(copied, capsys):
    plan, run = copied
    go(plan, run)
    assert len(run.ledger.events("certified")) == 3, "another start issues nothing"
    code, found = audited(run, capsys)
    checked = found["checked"]
    assert code == 0 and checked.pop("ledger") == len(run.ledger.events())
    assert checked == {"plan": 1, "stages": 3, "gates": 1, "certificates": 3, "exports": 1, "data": 3}
    card = (run.layout.exports / f"{FIRST}-adapter" / "README.md").read_text()
    assert "## Evaluation card" in card and read_certificates(run)[0]["id"][:16] in card
    assert main(["report", str(run.layout.root)]) == 0
    report = (run.layout.report / "report.md").read_text()
    assert "## Evaluation card" in report and all(one["id"][:16] in report for one in read_certificates(run))


def test_the_id_is_that_of_the_same_stage_trained_again(whole, tmp_path):
    plan, run = whole
    again = opened(plan, tmp_path)
    go(plan, again)
    ours, theirs = read_certificates(run), read_certificates(again)
    assert [one["id"] for one in ours] == [one["id"] for one in theirs] and timeless(ours) == timeless(theirs)
    assert ours[0]["run"] != theirs[0]["run"]


def test_what_the_audit_finds(copied, whole, tmp_path, capsys):
    plan, run = copied
    layout = run.layout
    data = layout.ledger.read_bytes()
    write_bytes(layout.ledger, data.replace(b'"after": 1', b'"after": 2', 1))
    line = data[: data.index(b'"after": 1')].count(b"\n") + 1
    assert told(run, capsys) == [f"ledger.jsonl:{line}: is not the line that was written"]
    write_bytes(layout.ledger, data[: data[:-1].rindex(b"\n") + 1])  # the last line, of the export, cut off
    assert told(run, capsys) == [f"exports/{FIRST}-adapter: is no export that the ledger knows"]
    write_bytes(layout.ledger, data)

    path = layout.certificate(FIRST)
    kept = path.read_bytes()
    forged(path, target={**read_json(path)["target"], "rows": 1})
    assert told(run, capsys) == [
        f"certificates/stages/{FIRST}.json: is not the certificate that the ledger says was issued last",
        f"certificates/stages/{FIRST}.json: does not say what the run's files say: target.rows",
    ]
    with run.locked():
        assert certify(run, 3) == [], "an edited certificate is not hidden by a new one"
    write_bytes(path, kept)
    score = layout.evals(1) / "letter" / "score.json"
    before = score.read_bytes()
    forged(score, format_validity=1.0)
    what = "does not say what the run's files say: regression.scores, id"
    assert told(run, capsys) == [f"certificates/stages/{FIRST}.json: {what}"]
    write_bytes(score, before)
    gate = layout.gate(SECOND)
    kept_gate = gate.read_bytes()
    forged(gate, decision="aside")
    assert told(run, capsys)[0] == f"gates/{SECOND}.json: says aside, and the ledger says promoted"
    write_bytes(gate, kept_gate)
    weights = next((layout.stage(THIRD) / "adapter").glob("*.safetensors"))
    kept_weights = weights.read_bytes()
    write_bytes(weights, kept_weights[:-1] + b"\0" if kept_weights[-1:] != b"\0" else kept_weights[:-1] + b"\1")
    assert "checksum differs from the manifest" in told(run, capsys)[0]
    write_bytes(weights, kept_weights)

    other = opened(plan, tmp_path / "other")
    with other.locked():
        shutil.copytree(layout.stages, other.layout.stages, dirs_exist_ok=True)
        shutil.copytree(layout.root / "evals", other.layout.root / "evals")
    other.layout.certificate(FIRST).parent.mkdir(parents=True)
    shutil.copyfile(path, other.layout.certificate(FIRST))
    assert told(other, capsys) == [f"certificates/stages/{FIRST}.json: is a certificate of another run"]
    assert audited(run, capsys)[0] == 0


def test_scores_made_again_and_a_rollback_renew_and_remove_certificates(copied, capsys):
    _, run = copied
    root = str(run.layout.root)
    assert main(["eval", root, "--rescore"]) == 0
    assert [e["stage"] for e in run.ledger.events("certified")] == 2 * [FIRST, SECOND, THIRD]
    assert audited(run, capsys)[0] == 0
    run.layout.certificate(THIRD).unlink()
    gone = "is gone, and the ledger says that it was issued"
    assert told(run, capsys) == [f"certificates/stages/{THIRD}.json: {gone}"]
    assert main(["rollback", root, "--to-stage", "1", "--yes"]) == 0
    assert [one["stage"] for one in read_certificates(Run(run.layout.root))] == [FIRST]
    code, found = audited(run, capsys)
    assert code == 0 and (found["checked"]["certificates"], found["checked"]["gates"]) == (1, 0)


def test_a_kill_before_the_certificate_is_written(copied):
    _, run = copied
    path = run.layout.certificate(FIRST)
    before = timeless(certificate(run, FIRST))
    path.unlink()
    run.ledger.append("certified", stage=FIRST, id="0" * 64, sha256="0" * 64)  # its line, and then the kill
    with run.locked():
        assert certify(run, 1) == [FIRST] and timeless(certificate(run, FIRST)) == before
        assert certify(run, 3) == []


def test_a_kill_between_scores_and_their_certificate(copied, capsys, monkeypatch):
    """The ledger knew before the scores changed: the audit says what to do, and the same command renews the certificates."""
    _, run = copied
    command = ["eval", str(run.layout.root), "--after", "1", "--task", "word"]
    with monkeypatch.context() as patch:
        real = sequence.evaluate

        def killed(*args, **given):
            real(*args, **given)
            raise Killed

        patch.setattr(sequence, "evaluate", killed)
        with pytest.raises(Killed):
            main(command)
    old = "is older than what the ledger says was done to the stage since: a command was stopped before its end"
    assert told(run, capsys) == [f"certificates/stages/{folder}.json: {old}" for folder in (FIRST, SECOND)]
    assert main(command) == 0
    assert "word" in read_certificates(run)[0]["regression"]["scores"] and audited(run, capsys)[0] == 0


def test_a_certificate_of_another_run_is_taken_by_no_command(copied, tmp_path, capsys, monkeypatch):
    """Nor one with a new checksum, and no weights are loaded for that; without it the next command issues the stage's own."""
    plan, run = copied
    monkeypatch.setattr(adapter, "write", lambda *args, **given: pytest.fail("weights are loaded"))
    root, path = str(run.layout.root), run.layout.certificate(FIRST)
    own, foreign = path.read_bytes(), "is a certificate of another run"
    for changes, what in (({"run": "0" * 32}, foreign), ({"issued": "2020"}, NOT_ISSUED)):
        forged(path, **changes)
        export = ["export", root, "--stage", "1", "--out", str(tmp_path / "out")]
        for command in (["report", root], export):
            assert main(command) == 5 and f"{path}: {what}" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        write_bytes(path, own)
    path.unlink()
    assert main(["eval", root, "--rescore"]) == 0 == main(["report", root])


def test_certificates_are_read_where_the_ledger_lost_lines(copied, capsys):
    """What no line says cannot be compared: the report goes on, and the audit tells."""
    _, run = copied
    ledger, data = run.layout.ledger, run.layout.ledger.read_bytes()
    for left in (data[: len(data) // 2], data.replace(b'"certified"', b'"cortified"', 1), data[9:], b"", None):
        ledger.write_bytes(left) if left is not None else ledger.unlink()
        again = Run(run.layout.root)
        with again.locked():
            assert certify(again, 3) == [] and len(read_certificates(again)) == 3
        assert audited(run, capsys)[0] == 5


def test_scores_of_the_base_renew_what_was_compared_with_them(copied, capsys):
    _, run = copied
    command = ["eval", str(run.layout.root), "--after", "0", "--task", "letter"]
    assert main(command) == 0 and [e["stage"] for e in run.ledger.events("certified")][3:] == [FIRST]
    assert audited(run, capsys)[0] == 0


def test_a_certificate_without_its_stage(copied, capsys):
    _, run = copied
    shutil.rmtree(run.stage(THIRD))
    assert told(run, capsys) == [f"stages/{THIRD}: the stage is not there"]
