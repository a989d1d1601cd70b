"""What every transform of the folder keeps to."""

import pytest

from mcit.core.config import parse
from mcit.core.lookup import class_of, known
from mcit.data.transforms.base import RowTransform
from tests.fakes.rows import row


@pytest.mark.parametrize("name", known("data.transforms"))
def test_found_by_file_name_and_refuses_unknown_keys(name):
    kind = class_of("data.transforms", name, base=RowTransform)
    config, problems = parse(kind.Config, {"surely_unknown": 1})
    assert config is None and any("unknown key" in p.what for p in problems)
    assert kind.__doc__ and kind.files(kind.__new__(kind)) == [] if "files" not in vars(kind) else True


def test_base_does_nothing_by_itself():
    with pytest.raises(NotImplementedError):
        RowTransform(None).apply([row("q", "a")], seed=0)
