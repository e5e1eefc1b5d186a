"""Runs through a SuperLink with TLS and known nodes go on without nodes that are killed: steps, then secure sums.

A secure round has five messages for each node, each with a process of its own that loads torch, and the SuperLink takes
a minute or more to notice that a node is gone. In each round a node is killed in another phase of the sum; of the nodes
that are left, one dies in the run that does not wait. Replays that lose the same replies have the same models.
"""

import pytest

from heterofl_flwr.report import RunFolder
from tests.deployment.lab import LONGEST, SMALL, Lab
from tests.deployment.replay import check

pytestmark = [pytest.mark.deployment, pytest.mark.release]

PHASES = ("keys", "shares", "train", "reveal")
MESSAGES = len(PHASES) + 1
"""Messages of a round to a node: one for each phase, and one about classifier rows."""

NODES = len(PHASES) + 3
SECURE = {
    **SMALL,
    "mix": "a1-b1",
    "num-rounds": len(PHASES),
    "sample.fraction": 1.0,
    "sample.min-replies": 3,
    "server.stages": "secure-sum(holders=3)",
    "run.callbacks": "tests.deployment.known_seeds:KnownSeeds",
}
STEPS = 2
ASYNCHRONOUS = {
    **SMALL,
    "mix": "a1-b1",
    "num-rounds": STEPS,
    "asynchronous.size": 1,
    # One at a time: with more, the others may take all steps before the SuperLink notices that a node is gone.
    "asynchronous.concurrency": 1,
    "train.epochs": 20,  # so that the node is killed before it has replied
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folders and logs of both runs, and the node that was killed in the second."""
    folder = tmp_path_factory.mktemp("killed-nodes")
    with Lab(folder) as lab:
        nodes = lab.prepare(NODES)
        lab.wait_for_nodes()
        asynchronous = lab.start("asynchronous", ASYNCHRONOUS)
        killed = lab.kill_one_that_trains(nodes)
        asynchronous.wait(LONGEST)
        lab.wait_for_nodes()
        secure = lab.start("secure", SECURE)
        for number in range(len(PHASES)):
            # Its capability, the rounds before, and the phases of this one.
            lab.kill_when_asked(number, nodes[number], 1 + number * MESSAGES + number + 1)
        secure.wait(LONGEST)
        logs = {name: lab.log(name) + lab.log("superlink") for name in ("secure", "asynchronous")}
    return {name: (RunFolder(folder / name), log) for name, log in logs.items()}, killed


def history_of(runs, name, rounds):
    folder, log = runs[0][name]
    history = folder.history()
    assert [record.server_round for record in history] == list(range(1, rounds + 1)), log[-9000:]
    return history


def test_each_secure_round_ends_without_the_node_that_was_killed(runs):
    history = history_of(runs, "secure", len(PHASES))
    # One that is killed when it is to reveal shares has sent its change before, so it is in the sum.
    lost = [{number} if phase != "reveal" else set() for number, phase in enumerate(PHASES)]
    assert [set(record.failures) & {number} for number, record in enumerate(history)] == lost
    summed = [NODES - number - len(own) for number, own in enumerate(lost)]
    assert [record.stages["summed-clients"] for record in history] == summed


def test_another_node_takes_the_place_of_one_that_was_killed(runs):
    history, killed = history_of(runs, "asynchronous", STEPS), runs[1]
    assert [own for record in history for own in record.failures] == [killed]
    trained = [record.rates.keys() - record.failures.keys() for record in history]
    assert [len(own) for own in trained] == [1] * STEPS
    assert not any(killed in own for own in trained)


def test_steps_equal_their_replay(runs, tmp_path):
    folder, log = runs[0]["asynchronous"]
    check(folder, ASYNCHRONOUS, NODES, log, tmp_path)


def test_secure_rounds_equal_their_replay(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("heterofl_flwr.stages.secure_sum.secrets.randbits", lambda bits: 0)
    folder, log = runs[0]["secure"]
    number = PHASES.index("train")
    check(folder, SECURE, NODES, log, tmp_path, answering=[(number + 1, number)])
