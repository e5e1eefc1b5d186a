"""What a job has to compute, and how long it takes."""

from simulations.sweep.cost import compute_cost, compute_macs, profile_at
from tests.simulations.sweeping import job


def test_work_counted_by_hand():
    # 200 rounds of 10 clients with 600 images each, five epochs; half of the clients at each level.
    own = job("data=mnist", "mix=a-e")
    cost = compute_cost(own)
    assert cost.trained == {1.0: 200 * 10 * 600 * 5 / 2, 0.0625: 200 * 10 * 600 * 5 / 2}
    # 20 evaluations on all test images and, for the moments, on all training images, the last one of both levels; the
    # global model once more on the server, and there before the first round too.
    assert cost.evaluated == {1.0: 20 * 70_000 + 21 * 10_000, 0.0625: 70_000}
    assert cost.at_once == 10
    macs = {rate: profile_at(own.settings, rate).macs for rate in (1.0, 0.0625)}
    assert compute_macs(own, cost) == sum(macs[rate] * (3 * cost.trained[rate] + cost.evaluated[rate]) for rate in macs)


def test_a_step_costs_what_its_replies_do():
    found = compute_cost(job("data=mnist", "mix=a-e", "asynchronous=buffered"))  # five replies a step
    assert found.trained == {1.0: 200 * 5 * 600 * 5 / 2, 0.0625: 200 * 5 * 600 * 5 / 2}
