"""T18 of the data card: ``What is <image> this <image>?`` becomes ``<image>``, a line break, ``What is  this ?``."""

from mcit.data.placeholder import front_placeholder


def test_t18_placeholder_in_front():
    assert front_placeholder("What is <image> this <image>?") == "<image>\nWhat is  this ?"
    assert front_placeholder("no picture ") == "no picture "
