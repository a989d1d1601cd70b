import json

from mcit.cli.main import main


def test_words_and_tables_fit_80_columns_and_json_has_everything(fake_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    a = fake_run([["a"], ["b"]], "one").shares(1, "a", 5).shares(2, "a", 2).shares(2, "b", 4)
    b = fake_run([["a"], ["b"]], "two", config={"seed": 7}).shares(1, "a", 5).shares(2, "a", 9).shares(2, "b", 4)
    assert main(["compare", str(a.root), str(b.root)]) == 0
    out = capsys.readouterr().out
    assert "A: one" in out and "Seeds differ: seed: 1 -> 7." in out and "+70.0" in out and "MFN" in out
    assert max(map(len, out.splitlines())) <= 80
    assert main(["compare", str(a.root), str(b.root), "--json", "--mode", "fixed"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["names"] == ["one", "two"] and found["differences"][0]["kind"] == "seeds"
    assert found["scorer_modes"] == ["fixed", "fixed"]


def test_no_run(tmp_path, capsys):
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 5
    assert "run folder" in capsys.readouterr().err
