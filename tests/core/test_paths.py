from pathlib import Path

from mcit.core import paths


def test_cache_follows_the_environment(monkeypatch):
    monkeypatch.setenv("MCIT_CACHE", "/a")
    assert paths.cache_dir() == Path("/a")
    monkeypatch.delenv("MCIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert paths.cache_dir() == Path("/b/mcit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert paths.cache_dir() == Path("/c/.cache/mcit")


def test_a_users_own_file_wins_over_a_shipped_name(tmp_path, monkeypatch):
    assert paths.find_shipped("configs", "tiny") == paths.shipped("configs") / "tiny.yaml"
    assert paths.find_shipped("configs", "no-such") is None
    monkeypatch.chdir(tmp_path)
    Path("tiny").write_text("x")
    assert paths.find_shipped("configs", "tiny") == Path("tiny")


def test_shipped_files_are_beside_a_checkout_and_inside_a_wheel(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "mcit")
    (tmp_path / "configs").mkdir()
    assert paths.shipped("configs") == tmp_path / "mcit" / "_shipped" / "configs"
    (tmp_path / "pyproject.toml").write_text("")
    assert paths.shipped("configs") == tmp_path / "configs"
