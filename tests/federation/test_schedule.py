"""Learning rates by round, as in Table 6."""

import pytest

from heterofl_flwr import multi_step


def test_the_rate_falls_after_each_milestone():
    at = multi_step(0.1, [150, 250])
    assert [at(server_round) for server_round in (1, 150)] == [0.1, 0.1]
    assert [at(server_round) for server_round in (151, 250)] == [pytest.approx(0.01)] * 2
    assert at(251) == at(400) == pytest.approx(0.001)


def test_without_milestones_it_stays():
    assert {multi_step(0.3)(server_round) for server_round in range(1, 9)} == {0.3}


def test_the_factor_is_free():
    assert multi_step(1.0, [1, 1], factor=0.5)(2) == 0.25
