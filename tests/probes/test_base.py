"""Probes: what a class of one owes."""

import pytest

from mcit.core import lookup
from mcit.core.config import parse
from mcit.core.errors import ConfigError
from mcit.plan.plan import parse_run, probe_specs
from mcit.plan.references import reference_problems
from mcit.probes.base import Probe, ProbeConfig
from tests.fakes.bench import TINY, plan_of


@pytest.mark.parametrize("name", lookup.known("probes"))
def test_settings_are_typed_and_refuse_unknown_keys(name):
    cls = lookup.class_of("probes", name, base=Probe)
    assert issubclass(cls.Config, ProbeConfig)
    _, problems = parse(cls.Config, {"no_such_key": 1})
    assert problems[0].what == "unknown key"


def test_when_it_is_due():
    assert [s for s in range(8) if Probe(ProbeConfig(every=3)).due(s, 7)] == [0, 3, 6, 7]
    for call in (lambda p: p.rows(None), lambda p: p.measure({}, None)):
        with pytest.raises(NotImplementedError):
            call(Probe(ProbeConfig()))


def test_settings_of_a_config_are_checked_at_planning():
    config, _ = parse_run({**TINY, "probes": [{"use": "sen"}, {"every": 3}]})
    assert [(p.where, p.what) for p in reference_problems(config)] == [
        ("probes[0].use", "there is no 'sen' in mcit.probes"),
        ("probes[1]", "has no use"),
    ]
    config, _ = parse_run({**TINY, "probes": [{"use": "seen", "evry": 3}, {"use": "seen"}]})
    assert [(p.where, p.what) for p in probe_specs(config)[1]] == [
        ("probes[0].evry", "unknown key"),
        ("probes[1]", "'seen' is listed twice"),
    ]
    with pytest.raises(ConfigError, match="unknown key"):
        plan_of(probes=[{"use": "seen", "evry": 3}])
