import torch

from mcit.engine import peak


def test_a_peak_is_that_since_it_was_begun():
    cpu = torch.device("cpu")
    torch.ones(1 << 26)  # 256 MiB, gone at once
    before = peak.peak_bytes(cpu)
    peak.begin_peak(cpu)
    begun = peak.peak_bytes(cpu)
    assert begun < before - (200 << 20)
    kept = torch.ones(1 << 25)
    assert peak.peak_bytes(cpu) >= begun + (100 << 20) and kept[0] == 1


def test_where_the_system_does_not_say_it_is_that_of_all_time(monkeypatch, tmp_path):
    monkeypatch.setattr(peak, "_SELF", tmp_path / "none")
    peak.begin_peak(torch.device("cpu"))
    assert peak.peak_bytes(torch.device("cpu")) > 1 << 20
