"""How many parameters there are, and where."""

import jax
import jax.numpy as jnp

from snapvideo_jax.training import parameter_report


def test_the_summary_of_parameters_names_the_largest_parts_and_counts_each_once():
    leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    params = {
        "network": {
            "blocks": {
                "global0": {"kernel": leaf(600, 100)},
                "global1": {"kernel": leaf(600, 100)},
                "read": {"kernel": leaf(300, 100), "bias": leaf(300)},
            },
            **{f"token_{name}": leaf(100) for name in "abcdefgh"},
            "stem": {"kernel": leaf(10, 100)},
        },
        "text_encoder": {"kernel": leaf(100, 100)},
    }
    assert parameter_report.summary(params).splitlines() == [
        "162,100 parameters, 648 kB",
        "  network/blocks/global*  120,000   74 %",
        "  network/blocks/read      30,300   19 %",
        "  text_encoder             10,000    6 %",
        "  network/stem              1,000    1 %",
        "  network/token_a             100    0 %",
        "  network/token_b             100    0 %",
        "  network/token_c             100    0 %",
        "  5 smaller parts             500    0 %",
    ]


def test_a_summary_of_one_parameter_is_that_parameter():
    lines = parameter_report.summary({"kernel": jnp.ones((2, 3))}).splitlines()
    assert lines == ["6 parameters, 24 B", "  kernel  6  100 %"]
