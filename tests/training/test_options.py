"""The options of training."""

import pytest

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.training import TrainOptions


def test_the_defaults_are_the_papers():
    options = TrainOptions(learning_rate=0.01)
    assert (options.epochs, options.batch_size, options.momentum) == (5, 10, 0.9)
    assert (options.weight_decay, options.clip, options.proximal) == (5e-4, 1.0, 0.0)
    assert (options.mask_fill, options.augment) == ("zero", "none")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", 0.0, "a number above 0"),
        ("epochs", 0, "an integer of 1 or more"),
        ("momentum", 1.0, "a number of 0 or more, and less than 1"),
        ("clip", float("nan"), "a number of 0 or more"),
        ("mask_fill", "inf", "one of zero, -inf, none"),
        ("augment", "mirror", "one of none, crop-flip"),
        ("precision", "float16", "one of float32, bfloat16"),
    ],
)
def test_values_that_cannot_be_trained_with_raise_an_error(name, value, expected):
    with pytest.raises(ConfigError, match=f"{name} is {value!r}[,;] expected {expected}"):
        TrainOptions(**{"learning_rate": 0.1, name: value})
