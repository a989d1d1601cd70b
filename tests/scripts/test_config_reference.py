"""docs/config.md and docs/config.schema.json are what the config classes say, and every key says what it is."""

import json
import sys

import pytest
import yaml

from mcit.core.config import Config
from mcit.core.paths import shipped
from mcit.core.schema import RunConfig
from scripts import config_reference as reference


def test_both_files_are_as_they_would_be_written():
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python scripts/config_reference.py"
    assert reference.SCHEMA.read_text(encoding="utf-8") == reference.json_schema(), (
        "run python scripts/config_reference.py"
    )


def test_every_key_has_a_docstring_and_a_row():
    assert reference.undocumented() == []
    text = reference.page()
    for _, _, cls, _ in reference.parts():
        assert all(f"| `{key}` |" in text for key in cls.model_fields), cls
    assert all(f"## Method `{name}`" in text for name in ("reglora", "gere", "hft", "l2", "ewc"))


def test_a_key_without_a_docstring_and_a_stale_file_end_the_script(monkeypatch, tmp_path):
    class Bare(Config):
        """A section."""

        told: int = 1
        """It has one."""
        untold: int = 2

    monkeypatch.setattr(sys, "argv", ["config_reference.py", "--check"])
    reference.main()
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    for name in ("PAGE", "SCHEMA"):
        with monkeypatch.context() as patch:
            patch.setattr(reference, name, tmp_path / name)
            (tmp_path / name).write_text("old")
            with pytest.raises(SystemExit, match=f"{name} is stale"):
                reference.main()
    monkeypatch.setattr(reference, "parts", lambda: [("## x", "", Bare, ())])
    with pytest.raises(SystemExit, match=r"keys without a docstring: .*Bare\.untold$"):
        reference.main()


def test_the_schema_knows_what_shipped_configs_hold():
    schema = json.loads(reference.json_schema())
    stage = set(schema["$defs"]["StageConfig"]["properties"])
    assert set(schema["properties"]) == {*RunConfig.model_fields, "defaults"}
    assert set(schema["$defs"]["Defaults"]["properties"]) == stage
    for path in shipped("configs").glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        assert set(config) <= set(schema["properties"]), path
        assert set(config.get("defaults") or {}) <= stage, path
