"""Any model by itself; that its scores are those of a run is in tests/cli/test_run.py."""

import pytest

from mcit.cli.main import main
from mcit.core.errors import ConfigError, DataError
from mcit.core.interfaces import Silent
from mcit.train.standalone import Standalone, model_config


def test_a_folder_a_family_and_settings(tmp_path):
    assert model_config("tiny", ["base.dtype=fp32", "eval.rows=3"]).eval.rows == 3
    assert model_config(str(tmp_path), []).base.family == "hf"
    assert model_config("owner/name", []).base.model == "owner/name"
    with pytest.raises(ConfigError, match="unknown key"):
        model_config("tiny", ["base.dtipe=fp32"])


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError) as told:
        model_config(str(tmp_path), [])
    assert "--set base.adapter=" in told.value.fix


def test_what_is_wrong_with_recipes_is_told_before_weights_load(tmp_path):
    config = model_config("tiny", [])
    with pytest.raises(DataError):
        Standalone(config, recipes=["tiny/nothing"], reporter=Silent())
    with pytest.raises(ConfigError):
        Standalone(model_config(str(tmp_path), []), recipes=["tiny/letter"], reporter=Silent())


def test_options_that_no_row_has_are_refused_before_weights_load(tmp_path):
    one = Standalone(model_config("tiny", ["eval.options=forward"]), recipes=["tiny/word"], reporter=Silent())
    with pytest.raises(ConfigError, match="no test row of these tasks has options"):
        one.score(tmp_path, stop=lambda: False)
    assert one._model is None


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--model", "tiny"],
        ["run", "--model", "tiny", "--recipe", "tiny/letter"],
        ["--recipe", "tiny/letter"],
        ["--model", "tiny", "--recipe", "tiny/letter", "--after", "1"],
    ],
)
def test_options_that_do_not_go_together(args, capsys):
    assert main(["eval", *args]) == 2
    assert capsys.readouterr().err
