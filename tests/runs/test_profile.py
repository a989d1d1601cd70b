import pytest

from mcit.core.errors import StateError
from mcit.runs.layout import RunLayout
from mcit.runs.profile import read_profile, write_profile
from tests.fakes.profiles import start


def test_what_is_written_is_read_and_damage_is_named(tmp_path):
    layout = RunLayout(tmp_path)
    assert read_profile(layout) == []
    write_profile(layout, [start(), start(tokens=5)])
    assert [one["stages"][0]["tokens"] for one in read_profile(layout)] == [1600, 5]
    layout.profile.write_text(layout.profile.read_text().replace('"tokens": 5', '"tokens": 6'))
    with pytest.raises(StateError, match="is not a profile as it was written"):
        read_profile(layout)


def test_what_is_no_profile_is_not_written(tmp_path):
    with pytest.raises(StateError, match=r"starts.0.threads"):
        write_profile(RunLayout(tmp_path), [{**start(), "threads": 0}])
    assert list(tmp_path.iterdir()) == []
