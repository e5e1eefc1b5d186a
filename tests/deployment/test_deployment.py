"""A SuperLink with TLS that takes known nodes alone, and four SuperNodes of unequal size, each a process of its own."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from heterofl_flwr.app.task import Task
from heterofl_flwr.learn import evaluate
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import from_flat, to_flat
from simulations.deployment import Deployment, kill

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

LEVELS = {"a": 1.0, "b": 0.5, "c": 0.25, "e": 0.0625}
ROUNDS = 3
LONGEST = 1800.0


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Run two rounds, go on with a third, and in that one kill node e while it trains."""
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
        whole = deployment.submit(to_flat(settings(run.path)))
        codes = {name: process.wait(LONGEST) for name, process in strangers.items()}
        first = deployment.wait_for_end(whole, LONGEST)
        deadline = max(2 * max(record.seconds for record in run.history()), 15.0)
        going_on = {"run.resume": True, "num-rounds": ROUNDS, "engine.timeout": deadline}
        last = deployment.submit({**to_flat(settings(run.path)), **going_on})
        after_last_instruction(deployment, lambda: kill(nodes["e"]))
        second = deployment.wait_for_end(last, LONGEST)
        logs = {name: deployment.log(name) for name in strangers}
    return run, (first, second), codes, logs, deadline


def settings(folder: Path):
    return from_flat(
        {
            "num-rounds": ROUNDS - 1,
            "assignment": "fix",
            "model.name": "mlp",
            "model.hidden": "32",
            "train.epochs": 2,
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


def after_last_instruction(deployment: Deployment, act) -> None:
    """Act as soon as node e has the instruction to train of the last round."""
    received = re.compile("Receiving: train message")
    deployment.wait_for(lambda: len(received.findall(deployment.log("node-e"))) == ROUNDS, "the last round", LONGEST)
    act()


def test_the_run_completes_though_a_node_dies_in_its_last_round(ended):
    run, statuses, *_ = ended
    assert [status for status, _ in statuses] == ["finished:completed"] * 2, statuses
    history = run.history()
    assert [record.rates for record in history] == [dict(enumerate(LEVELS.values()))] * ROUNDS
    *whole, last = [record.failures for record in history]
    assert whole == [{}, {}]
    # On a slow machine Flower notices the end of a node before the deadline.
    assert list(last) == [3]
    assert re.match("no reply in time|error 5: .*Node Unavailable", last[3])


def test_the_death_of_a_node_costs_no_more_than_the_deadline(ended):
    run, *_, deadline = ended
    *whole, last = [record.seconds for record in run.history()]
    assert last < deadline + max(whole)  # what else a round does takes as long as on this machine a round takes


def test_the_model_has_learnt_the_digits(ended):
    run, *_ = ended
    task = Task(from_flat(run.settings()))
    model = task.build(1.0)
    model.load_state_dict(load_file(run.path / "models" / "a.safetensors"))
    with torch.inference_mode():
        assert evaluate(model, task.dataset.test).accuracy > 0.6


def test_a_node_that_nobody_registered_is_refused(ended):
    _, _, codes, logs, *_ = ended
    assert codes["stranger"] != 0
    assert "Failed to activate" in logs["stranger"]


def test_a_node_that_does_not_speak_tls_is_refused(ended):
    _, _, codes, logs, *_ = ended
    assert codes["plain"] != 0
    assert "Receiving" not in logs["plain"]
