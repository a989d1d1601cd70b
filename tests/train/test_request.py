"""Requests to forget rows: all or nothing, in every head, certified, and checked by a script that knows no mcit."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from mcit.cli.main import main
from mcit.core.errors import DataError, McitError, StateError
from mcit.core.interfaces import Silent
from mcit.data.folder import DataFolder
from mcit.evals.audit import audit
from mcit.plan.plan import make_plan, parse_run
from mcit.runs.run import open_existing
from mcit.train import request as module
from mcit.train.request import forget_rows, read_request, stored_heads
from mcit.train.routing import build
from tests.fakes.trained_run import make_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify_certificate.py"
CONFIG = {
    "name": "pooled",
    "seed": 1,
    "base": {"family": "tiny", "dtype": "fp32"},
    "engine": {"micro_batch": 4, "workers": 0},
    "defaults": {
        "adapter": {"rank": 4, "alpha": 8, "also_train": [], "carry": "pool"},
        "optim": {"batch": 8, "lr": 1e-2, "warmup": 0},
        "max_steps": 1,
    },
    "router": {"use": "analytic"},
    "stages": [{"recipe": "tiny/word-forget"}, {"recipe": "tiny/yesno"}],
    "eval": {"tasks": "none"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("pooled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCIT_CACHE", str(cache))
        (folder / "c.yaml").write_text(yaml.safe_dump(CONFIG))
        assert main(["run", str(folder / "c.yaml"), "--runs-dir", str(folder / "runs")]) == 0
        (root,) = (folder / "runs").glob("pooled-*")
        found = open_existing(root)
        yield found, make_plan(parse_run(found.config())[0])


def rows_of(plan, task):
    return list(DataFolder.open(next(t for t in plan.tasks if t.name == task).folder).rows("train"))


def verified(run, certificate):
    command = [sys.executable, str(SCRIPT), str(run.layout.root), certificate]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_request_from_the_command_line_is_certified_and_holds_after_it(run, tmp_path, capsys):
    found, plan = run
    asked = rows_of(plan, "word-red")[3:8]
    before = {h.stage: h.head for h in stored_heads(found)}
    assert [len(h.rows) for h in before.values()] == [1, 2] and sum(
        map(len, before["02-yesno"].rows.values())
    ) == 39 + 120
    (tmp_path / "rows.txt").write_text("\n".join(row.id for row in asked) + "\n")
    assert main(["forget", str(found.layout.root), "--rows", str(tmp_path / "rows.txt"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert [(h["stage"], h["removed"], h["difference"]) for h in done["heads"]] == [
        ("01-word-red", 5, 0.0),
        ("02-yesno", 5, 0.0),
    ]
    for folder in found.committed():
        found.verify(folder)
    after = stored_heads(found)
    assert all(len(h.head.rows["01-word-red"]) == 34 for h in after)
    checked = verified(found, done["folder"])
    assert checked.returncode == 0 and checked.stdout.count("ok") == 2, checked.stdout + checked.stderr
    ledger = [json.loads(line) for line in found.layout.ledger.read_text().splitlines()]
    assert [e["event"] for e in ledger[-4:]] == ["replaced", "forgotten", "certified", "certified"]
    assert ledger[-3]["rows"] == 5 and [p for part in audit(found) for p in part.problems] == []

    # the same request again is the one that was made: nothing changes
    whole = {path: path.read_bytes() for path in found.layout.root.rglob("*") if path.is_file() and path.name != "lock"}
    assert main(["forget", str(found.layout.root), "--rows", str(tmp_path / "rows.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == done
    assert {path: path.read_bytes() for path in whole} == whole

    # beside others its rows were never learned now: nothing changes
    state = found.stage("02-yesno") / "router" / "state.json"
    bytes_before = state.read_bytes()
    with found.locked(), pytest.raises(StateError) as error:
        forget_rows(plan, found, [rows_of(plan, "yesno")[0], *asked], scratch=tmp_path, reporter=Silent())
    assert len(error.value.problems) == 5 and error.value.problems[0].where == asked[0].where
    assert state.read_bytes() == bytes_before

    # a head that was tampered with is found by the script
    record = json.loads(state.read_text())
    record["state"]["head"]["rows"]["01-word-red"][done["rows"][0]["key"]] = "0" * 32
    state.write_text(json.dumps(record))
    checked = verified(found, done["folder"])
    state.write_bytes(bytes_before)
    assert checked.returncode == 1 and "WRONG" in checked.stdout


def test_a_request_that_was_killed_is_finished_by_the_same_command(run, tmp_path, monkeypatch, capsys):
    """Rows are out of the heads, and a kill came before the certificates of the stages were issued anew."""
    found, plan = run
    (tmp_path / "rows.json").write_text(json.dumps([row.id for row in rows_of(plan, "word-red")[20:22]]))
    first = found.layout.certificates / "0001"
    first.rename(tmp_path / "0001")
    given = ["forget", str(found.layout.root), "--rows", str(tmp_path / "rows.json"), "--json"]
    with monkeypatch.context() as patch:
        patch.setattr("mcit.train.request.certify", lambda run: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            main(given)
    wrong = [problem for part in audit(found) for problem in part.problems]
    assert [problem.what[:8] for problem in wrong] == ["is older", "is older", "file is "]
    assert wrong[2].where == str(first / "certificate.json")  # it is gone, and its number was not given again
    assert main(given) == 0
    done = json.loads(capsys.readouterr().out)
    assert [head["removed"] for head in done["heads"]] == [2, 2] and Path(done["folder"]).name == "0002"
    asked = rows_of(plan, "word-red")[3:8]
    with found.locked(), pytest.raises(StateError, match=re.escape(str(first / "certificate.json"))):
        forget_rows(plan, found, asked, scratch=tmp_path, reporter=Silent())
    (tmp_path / "0001").rename(first)
    assert [p for part in audit(found) for p in part.problems] == [] and verified(found, done["folder"]).returncode == 0


def test_the_router_answers_from_the_new_head(run):
    found, plan = run
    from mcit.train.sequence import Session

    router = build(plan.router, Session(plan, found, Silent()).lineage(2))
    head = router._loaded()
    assert sorted(map(len, head.rows.values())) == sorted(len(v) for v in stored_heads(found)[1].head.rows.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nobody\n", ":1:nobody.*is no training row"),
        ('{"id": "nobody", "task": "yesno"}', "is no training row"),
        ("", "names no row"),
        ("[]", "names no row"),
        ("[1, 2]", ":2:2"),
        ("[" * 3000, r"is no training row"),
        ("9" * 5000, r"is no training row"),
    ],
)
def test_a_request_that_names_no_rows(run, tmp_path, text, says):
    path = tmp_path / "rows.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_request(path, run[1])
    with pytest.raises(DataError, match="cannot be read"):
        read_request(tmp_path / "absent", run[1])
    with pytest.raises(DataError, match="no regular file"):
        read_request(Path("/dev/zero"), run[1])


def test_rows_whose_data_were_deleted_are_said_to_be(run, tmp_path):
    plan, path = run[1], tmp_path / "rows.txt"
    gone = replace(plan.stages[0].tasks[0], gone=True)
    without = replace(plan, stages=(replace(plan.stages[1], forget=(gone,)),))
    path.write_text(rows_of(plan, "word-red")[0].id + "-gone")
    with pytest.raises(DataError, match="is no training row") as caught:
        read_request(path, without)
    assert "tiny/word-forget, which were deleted" in caught.value.problems[0].fix
    with pytest.raises(StateError, match="no head can be fitted again") as lost:
        module._rows_left(without, stored_heads(run[0]), set())
    assert lost.value.problems[0].fix == "restore what was deleted after its request: tiny/word-forget"


def test_ids_of_several_rows_need_their_task(run, tmp_path):
    plan = run[1]
    red, yes = rows_of(plan, "word-red"), rows_of(plan, "yesno")
    path = tmp_path / "rows.json"
    both = {r.id for r in red} & {r.id for r in yes}
    if both:
        path.write_text(json.dumps([min(both)]))
        with pytest.raises(DataError, match="could be one of several"):
            read_request(path, plan)
    path.write_text(json.dumps([{"id": yes[2].id, "task": "yesno"}, {"id": yes[2].id, "task": "yesno"}]))
    assert [(row.id, row.task) for row in read_request(path, plan)] == [(yes[2].id, "yesno")]


def test_a_run_without_such_a_head(tmp_path):
    found, _ = make_run(tmp_path, ["merge"])
    with found.locked(), pytest.raises(McitError, match="has no analytic head"):
        forget_rows(None, found, [], scratch=tmp_path, reporter=Silent())


def test_lines_of_the_base_are_shown(monkeypatch):
    """Of the vision cache, say: the base of a request is loaded as a run's is."""
    lines, reporter = [], Silent()
    reporter.line = lines.append
    for name in ("base_digest", "base_identity", "make_encoder", "Session"):
        monkeypatch.setattr(module, name, lambda *given: None)
    monkeypatch.setattr(module, "load_run_base", lambda plan, *, device, told=lambda line: None: told("of the base"))
    engine, base = SimpleNamespace(device="cpu"), SimpleNamespace(dtype="fp32")
    plan = SimpleNamespace(config=SimpleNamespace(engine=engine, base=base), model_path=None, stages=[])
    module._Features(plan, None, reporter, None)._base._load()
    assert lines == ["of the base"]
