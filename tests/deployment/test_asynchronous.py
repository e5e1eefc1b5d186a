"""Steps that do not wait, through a SuperLink with TLS and known nodes, of which one is killed while it trains."""

import pytest

from heterofl_flwr.report import RunFolder
from tests.deployment.lab import LONGEST, SMALL, Lab

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

NODES, STEPS = 3, 3
CONFIG = {
    **SMALL,
    "mix": "a1-b1",
    "num-rounds": STEPS,
    "asynchronous.size": 1,
    # One at a time: with more, the others may take all steps before the SuperLink notices that a node is gone.
    "asynchronous.concurrency": 1,
    "train.epochs": 20,  # so that the node is killed before it has replied
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asynchronous")
    with Lab(folder, {"OMP_NUM_THREADS": "1"}) as lab:
        nodes = lab.prepare(NODES)
        app = lab.start(CONFIG)
        killed = lab.kill_one_that_trains(nodes)
        app.wait(LONGEST)
        return RunFolder(folder / "run"), killed, lab.log("app") + lab.log("superlink")


def test_another_node_takes_the_place_of_one_that_was_killed(run):
    folder, killed, log = run
    history = folder.history()
    assert [record.server_round for record in history] == list(range(1, STEPS + 1)), log[-9000:]
    assert [own for record in history for own in record.failures] == [killed]
    trained = [record.rates.keys() - record.failures.keys() for record in history]
    assert [len(own) for own in trained] == [1] * STEPS
    assert not any(killed in own for own in trained)
