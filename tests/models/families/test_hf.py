import pytest

from mcit.core.errors import ConfigError
from mcit.core.schema import BaseConfig
from mcit.models.families import hf
from tests.fakes.models import tiny_path


def test_local_folder_is_taken_as_it_is():
    assert hf.materialize(BaseConfig(model=str(tiny_path()))) == tiny_path().resolve()
    assert hf.pending(BaseConfig(model=str(tiny_path()))) is None


def test_hub_id_offline_is_a_clear_error():
    with pytest.raises(ConfigError) as error:
        hf.materialize(BaseConfig(model="someone/something"))
    assert "someone/something" in str(error.value) and error.value.exit_code == 2
