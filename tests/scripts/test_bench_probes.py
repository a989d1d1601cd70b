"""scripts/bench/probes.py on the tiny model: both sides take their steps, measurements are counted, finished cases stay."""

import json
import sys

import pytest

from scripts.bench import probes


@pytest.mark.slow
def test_a_case_is_measured_once(tmp_path, monkeypatch, capsys):
    file = tmp_path / "found.json"
    argv = ["probes.py", "--base", "tiny", "--steps", "2", "--rounds", "1", "--only", "stability", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", argv)
    code = probes.main()
    (found,) = json.loads(file.read_text()).values()
    assert len(found["rounds"]) == 1 and found["range"][0] <= found["overhead"] <= found["range"][1]
    for one in found["rounds"]:
        assert one["made"] == 2 and one["left_out"] == 0 and 0 < one["probe_share"] < 1
        assert one["overhead"] == pytest.approx(one["seconds"][1] / one["seconds"][0] - 1)
    assert code == int(found["overhead"] > 0.1)
    monkeypatch.setattr(probes, "measure", None)
    assert probes.main() == code and "limit 10%" in capsys.readouterr().out
