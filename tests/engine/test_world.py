from mcit.engine import world


def test_one_process_is_rank_zero_of_one():
    assert (world.rank(), world.size()) == (0, 1)
