"""A SuperLink with TLS that takes known nodes alone, and four SuperNodes of unequal size, each a process of its own."""

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import server_app
from heterofl_flwr.app.launch.superlink import status_of
from heterofl_flwr.app.task import Task
from heterofl_flwr.learn import evaluate
from heterofl_flwr.methods.callbacks import RoundRecord
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import from_flat, to_flat
from simulations.deployment import Deployment, kill

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

LEVELS = {"a": 1.0, "b": 0.5, "c": 0.25, "e": 0.0625}
ROUNDS = 3
KILLED = 2  # the round in which the ServerApp is killed
LONGEST = 1800.0


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Run a round, kill the ServerApp in the second, go on with that one, and kill node e in the last."""
    folder = tmp_path_factory.mktemp("deployment")
    run = RunFolder(folder / "run")
    with Deployment(folder, {"OMP_NUM_THREADS": "1"}) as deployment:
        deployment.start_superlink()
        deployment.register(*(f"node-{level}" for level in LEVELS))
        nodes = {
            level: deployment.start_node(f"node-{level}", f'level="{level}" partition-id={number} num-partitions=4')
            for number, level in enumerate(LEVELS)
        }
        strangers = refused(deployment)
        killed = deployment.submit(to_flat(settings(run.path)))
        codes = {name: process.wait(LONGEST) for name, process in strangers.items()}
        wait_for_instruction(deployment, KILLED)
        (server,) = deployment.numbers_of("flwr-serverapp")
        os.kill(server, signal.SIGKILL)
        first_round = run.history()
        deadline = max(3 * first_round[-1].seconds, 15.0)
        going_on = {"run.resume": True, "engine.timeout": deadline}
        last = deployment.submit({**to_flat(settings(run.path)), **going_on})
        wait_for_instruction(deployment, ROUNDS + 1)  # round 2 had two
        kill(nodes["e"])
        status = deployment.wait_for_end(last, LONGEST)
        before = status_of(killed, deployment.environment)
        logs = {name: deployment.log(name) for name in strangers}
    return Ended(run, first_round, before, status, codes, logs, deadline)


@dataclass(frozen=True)
class Ended:
    """What is left of it all."""

    run: RunFolder
    first_round: list[RoundRecord]  # the history when the ServerApp was killed
    killed: tuple[str, str]
    resumed: tuple[str, str]
    codes: dict[str, int]
    logs: dict[str, str]
    deadline: float


def settings(folder: Path):
    return from_flat(
        {
            "num-rounds": ROUNDS,
            "assignment": "fix",
            "model.name": "mlp",
            "model.hidden": "32",
            "train.epochs": 3,
            "engine.name": "plain",  # the same bits everywhere
            "evaluate.every": 0,
            "sample.min-nodes": len(LEVELS),
            "sample.wait": LONGEST,
            "run.callbacks": "",
            "run.dir": str(folder),
            "engine.timeout": LONGEST,
        }
    )


def refused(deployment: Deployment):
    """Start a node with a key that nobody registered, and one that does not speak TLS."""
    key = deployment.make_key("stranger")
    proof = [f"--root-certificates={deployment.keys}/ca.crt", f"--auth-supernode-private-key={key}"]
    return {
        "stranger": deployment.start_node("stranger", "partition-id=4", proof),
        "plain": deployment.start_node("plain", "partition-id=5", ["--insecure", "--max-retries=1"]),
    }


def wait_for_instruction(deployment: Deployment, number: int) -> None:
    """Wait until node e has so many instructions to train."""
    received = re.compile("Receiving: train message")
    deployment.wait_for(lambda: len(received.findall(deployment.log("node-e"))) >= number, "an instruction", LONGEST)


class WithoutNodeE(LocalGrid):
    """The nodes in this process; the reply of the last to the last round's instruction never comes."""

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        *_, last = self.get_node_ids()
        config = messages[0].content["config"]
        if messages[0].metadata.message_type != "train" or config["server-round"] != ROUNDS:
            return replies
        return [reply for reply in replies if reply.metadata.src_node_id != last]


def test_the_run_completes_though_its_server_and_a_node_die(ended):
    assert ended.killed[0] != "finished:completed"
    assert ended.resumed[0] == "finished:completed", ended.resumed
    assert [record.server_round for record in ended.first_round] == [1]
    history = ended.run.history()
    assert [record.rates for record in history] == [dict(enumerate(LEVELS.values()))] * ROUNDS
    *whole, last = [record.failures for record in history]
    assert whole == [{}, {}]
    # On a slow machine Flower notices the end of a node before the deadline.
    assert list(last) == [3]
    assert re.match("no reply in time|error 5: .*Node Unavailable", last[3])


def test_the_model_is_that_of_a_run_whose_server_was_not_killed(ended, tmp_path):
    config = to_flat(settings(tmp_path / "whole"))
    levels = [{"level": level} for level in LEVELS]
    client = "heterofl_flwr.app.client_app:app"
    with WithoutNodeE(client, len(LEVELS), run_config=config, node_config=levels.__getitem__) as grid:
        server_app.run(grid, Task(from_flat(config)))
    for level in LEVELS:
        ours, whole = (
            load_file(path / "models" / f"{level}.safetensors") for path in (ended.run.path, tmp_path / "whole")
        )
        assert ours.keys() == whole.keys()
        assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_the_death_of_a_node_costs_no_more_than_the_deadline(ended):
    *whole, last = [record.seconds for record in ended.run.history()]
    assert last < ended.deadline + max(whole)  # what else a round does takes as long as on this machine a round takes


def test_the_model_has_learnt_the_digits(ended):
    task = Task(from_flat(ended.run.settings()))
    model = task.build(1.0)
    model.load_state_dict(load_file(ended.run.path / "models" / "a.safetensors"))
    with torch.inference_mode():
        assert evaluate(model, task.dataset.test).accuracy > 0.6


def test_a_node_that_nobody_registered_is_refused(ended):
    assert ended.codes["stranger"] != 0
    assert "Failed to activate" in ended.logs["stranger"]


def test_a_node_that_does_not_speak_tls_is_refused(ended):
    assert ended.codes["plain"] != 0
    assert "Receiving" not in ended.logs["plain"]
