import pytest

from mcit.engine.estimate.sizes import parse_size, size_text


def test_units_are_powers_of_1024():
    assert [parse_size(t) for t in ("24G", "1.5 GiB", "512m", "80GB", "1000")] == [
        24 * 2**30,
        3 * 2**29,
        2**29,
        80 * 2**30,
        1000,
    ]


@pytest.mark.parametrize("text", ["", "G", "24X", "-1G", "nan", "inf"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError):
        parse_size(text)


def test_text():
    assert size_text(3 * 2**29) == "1.5 GiB" and size_text(5 * 2**20) == "5.0 MiB"
