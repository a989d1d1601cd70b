from mcit.core.doing import doing, told_to


def test_only_inside_the_block_and_the_innermost_hears():
    heard, inner = [], []
    doing("before")
    with told_to(heard.append):
        doing("a")
        with told_to(inner.append):
            doing("b")
        doing("c")
    doing("after")
    assert heard == ["a", "c"] and inner == ["b"]
