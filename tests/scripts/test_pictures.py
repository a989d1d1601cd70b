import sys

from scripts.bench import pictures


def test_it_measures_every_kind_of_start(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--count", "3", "--kilobytes", "1", "--runs", "1"])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    pictures.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == ["first start", "later start", "--trust-mtime"]
