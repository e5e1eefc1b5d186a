"""Steps that do not wait, through a SuperLink with TLS and known nodes, of which one is killed while it trains."""

import pytest

from heterofl_flwr.report import RunFolder
from tests.deployment.lab import LONGEST, SMALL, Lab

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

NODES, STEPS, KILLED = 4, 3, 0
CONFIG = {
    **SMALL,
    "num-rounds": STEPS,
    "asynchronous.size": 2,
    "asynchronous.concurrency": 2,  # so a step cannot end before the one that is killed is replaced
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asynchronous")
    with Lab(folder, {"OMP_NUM_THREADS": "1"}) as lab:
        nodes = lab.prepare(NODES)
        app = lab.start(CONFIG)
        lab.kill_when_asked(KILLED, nodes[KILLED], 2)  # its capability, and to train
        app.wait(LONGEST)
        if lab.log(f"node-{KILLED}").count("Receiving: ") < 2:
            pytest.skip("nodes arrived in an order in which the one to be killed was not asked to train")
        return RunFolder(folder / "run"), lab.log("app") + lab.log("superlink")


def test_another_node_takes_the_place_of_one_that_was_killed(run):
    history = run[0].history()
    assert [record.server_round for record in history] == list(range(1, STEPS + 1)), run[1][-9000:]
    assert [own for record in history for own in record.failures] == [KILLED]
    trained = [record.rates.keys() - record.failures.keys() for record in history]
    assert [len(own) for own in trained] == [2] * STEPS
    assert not any(KILLED in own for own in trained)
