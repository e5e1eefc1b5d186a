"""Secure aggregation through a SuperLink with TLS and known nodes, of which one is killed in each round.

The SuperLink takes a minute or more to notice that a node is gone, so by default there is one round, in which a node
dies when it is to train. ``HETEROFL_PHASES=keys,shares,train,reveal`` kills one in each phase, in four rounds.
"""

import os

import pytest

from heterofl_flwr.report import RunFolder
from tests.deployment.lab import LONGEST, SMALL, Lab

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

ALL = ("keys", "shares", "train", "reveal")
PHASES = tuple(os.environ.get("HETEROFL_PHASES", "train").split(","))
NODES = len(PHASES) + 3
CONFIG = {
    **SMALL,
    "mix": "a1-b1",
    "num-rounds": len(PHASES),
    "sample.fraction": 1.0,
    "sample.min-replies": 3,
    "server.stages": "secure-sum(holders=3)",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    with Lab(folder, {"OMP_NUM_THREADS": "1"}) as lab:
        nodes = lab.prepare(NODES)
        app = lab.start(CONFIG)
        for number in range(len(PHASES)):
            # Its capability, the rounds before, and this one.
            lab.kill_when_asked(number, nodes[number], 1 + number * len(ALL) + ALL.index(PHASES[number]) + 1)
        app.wait(LONGEST)
        return RunFolder(folder / "run"), lab.log("app") + lab.log("superlink")


def test_each_round_ends_without_the_node_that_was_killed(run):
    history = run[0].history()
    assert [record.server_round for record in history] == list(range(1, len(PHASES) + 1)), run[1][-3000:]
    # One that is killed when it is to reveal shares has sent its change before, so it is in the sum.
    lost = [{number} if phase != "reveal" else set() for number, phase in enumerate(PHASES)]
    assert [set(record.failures) & {number} for number, record in enumerate(history)] == lost
    summed = [NODES - number - len(own) for number, own in enumerate(lost)]
    assert [record.privacy["summed-clients"] for record in history] == summed
