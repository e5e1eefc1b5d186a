"""What lasts from step to step; which options do not fit."""

import pytest

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.stages.asynchronous import Asynchronous, Buffered


def test_what_lasts_is_the_version_and_who_trains():
    stage = Asynchronous(Buffered(size=2, concurrency=2))
    stage.clocks.step([])
    stage.training = [3, 1]
    other = Asynchronous(Buffered(size=2, concurrency=2))
    other.load(stage.state())
    assert (other.clocks.version, other.training) == (1, [3, 1])
    other.load({})
    assert (other.clocks.version, other.training) == (0, [])


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"size": 3, "concurrency": 2}, "concurrency is 2, expected size, 3, or more"),
        ({"clocks": "each"}, "clocks is 'each', expected one of regions, model"),
        ({"staleness": -0.5}, "staleness is -0.5, expected a number of 0 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, cause):
    with pytest.raises(ConfigError, match=cause):
        Buffered(**options)
