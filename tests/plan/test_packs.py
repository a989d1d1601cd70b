import json

import pytest

from mcit.cli.main import main
from mcit.plan import preflight
from mcit.plan.packs import packs_refused
from tests.fakes.bench import plan_of


def test_why_rows_are_padded_is_what_the_engine_says():
    assert packs_refused(plan_of()) == ""
    assert packs_refused(plan_of(engine={"packs": False})) == "engine.packs is false"
    given = {"family": "tiny", "dtype": "fp32", "attention": "eager"}
    assert packs_refused(plan_of(base=given)) == "base.attention is eager, and packs need sdpa"


def test_a_skeleton_that_is_only_read_is_made_once(monkeypatch):
    plan = plan_of()
    one = preflight.shared_skeleton(plan)
    assert one.lm_head.weight.is_meta and preflight.shared_skeleton(plan) is one
    assert preflight.skeleton(plan) is not one  # that one may be changed


@pytest.mark.parametrize(
    ("given", "shown", "note"),
    [
        ([], "packs yes", ""),
        (["--set", "engine.packs=false"], "packs no", "note: rows are padded, not packed: engine.packs is false"),
    ],
)
def test_the_plan_says_it(given, shown, note, capsys):
    assert main(["plan", "tiny", *given]) == 0
    out = capsys.readouterr().out
    assert shown in " ".join(out.split()) and note in out
    if note:
        assert main(["plan", "tiny", *given, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["packs"] == {"used": False, "refused": "engine.packs is false"}
