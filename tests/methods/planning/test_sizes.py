"""Sizes from shapes."""

from mcit.methods.planning.sizes import matrix_numbers


def test_a_pair_counts_as_its_product_and_a_tensor_as_itself():
    """B (3, 2) A (2, 5) is a 3 x 5 matrix; beside it a tensor of 4 x 4 and a vector of 7."""
    shapes = {
        "a.up.lora_A.x.weight": (2, 5),
        "a.up.lora_B.x.weight": (3, 2),
        "b.up.weight": (4, 4),
        "norm.weight": (7,),
    }
    assert matrix_numbers(shapes) == 15 + 16 + 7
    assert matrix_numbers(shapes, ["up"]) == 15 + 16 and matrix_numbers(shapes, ["a.up"]) == 15
    assert matrix_numbers(shapes, ["p"]) == 0  # endings are whole parts of a name
