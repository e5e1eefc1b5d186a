"""What a ``NumPyClient`` calls, and static batch norm moments in the classic API."""

import numpy as np
import pytest
import torch
from flwr.common import parameters_to_ndarrays

from heterofl_flwr import Evaluation, Sampling
from heterofl_flwr.classic import HeteroFL, Task, parameters_of, properties_of
from heterofl_flwr.common.errors import ConfigError, ReplyError
from tests.classic.fakes import Fake, evaluate_all, fit_all, fit_res, manager_of
from tests.federation.tiny import build, build_normed, inputs, node_context


def config(rate=1.0, task="train", **values):
    told = {"heterofl-schema": 2, "rate": rate, "seed": 0, "server-round": 1, "partition": 0, "task": task}
    return told | {key.replace("_", "-"): value for key, value in values.items()}


@pytest.mark.parametrize(
    ("arrays", "told", "named"),
    [
        (parameters_of(build(1.0))[:3], config(), "the server sent 3 arrays, expected 4; let the server and this"),
        (parameters_of(build(0.5)), config(), r"hidden.bias: \(4,\), expected \(8,\)"),
        (parameters_of(build(1.0)), {"lr": 0.1}, "the server's strategy is not HeteroFL: .*classic.HeteroFL"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arrays, told, named):
    with pytest.raises(ReplyError, match=named):
        Task(arrays, told, node_context(), build).model()


def test_properties_are_those_of_the_node_config():
    assert properties_of(node_context(level="b"), moments=True) == {"capacity": 0.5, "moments": True}


class Normed(Fake):
    """A client of a model with batch norm that answers for its moments, unless it was given another answer."""

    def __init__(self, cid, moments=None):
        super().__init__(cid, says={"partition": int(cid), "moments": True}, moments=moments or self._answer)

    def _answer(self, ins):
        arrays = parameters_to_ndarrays(ins.parameters)
        task = Task(arrays, ins.config, node_context(), build_normed)
        return fit_res(*task.moments(lambda: [inputs(int(self.cid))])[:2])


def said(count, width, value=1.0):
    """Return how a client answers for moments of its own."""
    return lambda ins: fit_res([np.array(count), np.full(width, value), np.ones(width)])


def evaluated(fakes, mix="a1-c1", **options):
    strategy = HeteroFL(build_normed, mix, sampling=Sampling(wait=1.0), evaluation=Evaluation(**options))
    manager = manager_of(*fakes)
    instructions = strategy.configure_fit(1, strategy.initialize_parameters(manager), manager)
    parameters, _ = strategy.aggregate_fit(1, fit_all(instructions), [])
    instructions = strategy.configure_evaluate(1, parameters, manager)
    return strategy, instructions, strategy.aggregate_evaluate(1, evaluate_all(instructions), [])


def test_clients_that_do_not_promise_moments_are_not_asked():
    fakes = [Fake(str(cid)) for cid in range(2)]
    strategy, instructions, (loss, _) = evaluated(fakes)
    assert strategy._inner.moments == {}
    assert [fake.asked for fake in fakes] == [["properties", "train", "evaluate"]] * 2
    assert "moments-kind" not in instructions[0][1].config
    assert loss == 1.0


@pytest.mark.parametrize(("remote", "mean"), [(True, 1.2), (False, 11)])
def test_moments_of_other_machines_are_merged_robustly(remote, mean):
    fakes = [Normed(str(cid), said(1, 8, value)) for cid, value in enumerate([1.0, 1.1, 30.9])]
    if remote:
        fakes[0].bridge = None  # as clients of ``start_server`` have
    strategy, *_ = evaluated(fakes, "a1")
    assert strategy._inner.moments[1.0].statistics("norm")[0].tolist() == pytest.approx([mean] * 8, abs=0.04)


def test_the_penalty_is_that_of_the_message_api():
    task = Task(parameters_of(build(1.0)), config() | {"proximal_mu": 0.5}, node_context(), build)
    model = task.model()
    for parameter in model.parameters():
        parameter.data += 2.0
    entries = sum(parameter.numel() for parameter in model.parameters())
    assert task.penalty(model).item() == pytest.approx(0.25 * 4 * entries, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"metrics": {"capacity": 0.25}}, "metrics has capacity, which is an argument of reply; expected another name"),
        ({"labels": {"classifier": [0, 1]}}, "labels is by head, which the classic API does not carry"),
        ({"metrics": {"loss": torch.tensor(0.5)}}, r"metrics has loss=tensor\(0.5000\); expected a bool, bytes, float"),
        ({"metrics": {"losses": [0.5]}}, r"metrics has losses=\[0.5\]; expected a bool, bytes, float, int or str"),
        ({"num_examples": "3"}, "num_examples is '3'; expected a whole number"),
    ],
)
def test_a_reply_that_would_say_something_else_is_refused(arguments, text):
    task = Task(parameters_of(build(1.0)), config(), node_context(), build)
    model = task.model()
    with pytest.raises(ConfigError, match=text):
        task.reply(model, **{"num_examples": 1} | arguments)
    assert type(task.reply(model, num_examples=np.int64(3))[1]) is int  # Flower takes no other kind
