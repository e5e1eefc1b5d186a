"""The global random generators: what stands around a user's loop leaves them alone, unless it is asked to seed."""

import random

import numpy as np
import pytest
import torch

from heterofl_flwr import classic, client
from heterofl_flwr.classic import parameters_of
from heterofl_flwr.client.queries import answer_moments
from heterofl_flwr.core.randomness import initial_state
from tests.client import test_client as client_tests
from tests.federation.tiny import Tiny, inputs, node_context

MODELS = {rate: Tiny(rate, norm=True) for rate in (1.0, 0.7, 0.5)}
TOLD = {"rate": 0.5, "global-rate": 1.0, "seed": 0, "server-round": 1, "partition": 0, "heterofl-schema": 2}


pytestmark = pytest.mark.usefixtures("identity")


def seeding():
    """Return a builder as users have them: it seeds everything, and draws from everything."""

    def build(rate):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - as users' code does
        return Tiny(rate, norm=True)

    return build


def instruction(kind="train", **told):
    model = MODELS[told.get("rate", 0.5)]
    state = {name: own.detach() for name, own in model.named_parameters() if "shared" not in told}
    return client_tests.instruction(kind=kind, state=state, **{**TOLD, "moments-kind": "paper", **told})


def task(build, kind="train", **told):
    return client.Task(instruction(kind, **told), node_context(), build)


def classic_task(build, **told):
    return classic.Task(parameters_of(MODELS[0.5]), {**TOLD, **told}, node_context(), build)


def reply(build):
    answered = task(build, upload="int8")
    answered.reply(answered.model(), num_examples=1)


CALLS = {
    "model": lambda build: task(build).model(),
    "to evaluate": lambda build: task(build, "evaluate").model(),
    "not shared": lambda build: task(build, shared=[""]).model(),
    "models": lambda build: list(task(build, "evaluate", rate=1.0, rates=[1.0, 0.5]).models()),
    "answer_moments": lambda build: answer_moments(task(build, "query.moments"), lambda: [inputs(0)]),
    "reply": reply,
    "classic model": lambda build: classic_task(build).model(),
    "classic models": lambda build: list(classic_task(build, rates="0.5,0.25", task="evaluate").models()),
    "the start of a run": lambda build: initial_state(build, 1.0, 0),
}


def states():
    numpys = np.random.get_state()[1].tolist()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), numpys


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_global_generators_are_left_as_they_were(call):
    build, drawn = seeding(), []
    for seed in (1, 2):  # two processes, as torch starts them; the first time the model is built, then it is there
        torch.manual_seed(seed)
        before = states()
        call(build)
        assert states() == before
        drawn.append(torch.normal(0, 1, (3,)))
    assert not torch.equal(*drawn)


def asked(**told):
    client.Task(instruction(**told), node_context(), seeds, seed_torch=True).model()


def asked_classically(**told):
    arrays = parameters_of(MODELS[told.get("rate", 0.5)])
    classic.Task(arrays, {**TOLD, **told}, node_context(), seeds, seed_torch=True).model()


seeds = seeding()


@pytest.mark.parametrize("ask", [asked, asked_classically])
def test_torch_draws_by_seed_round_and_partition_where_asked(ask):
    def draw(**told):
        torch.manual_seed(len(told))
        ask(**told)
        return torch.rand(3).tolist()

    draws = [draw(), draw(seed=1), draw(**{"server-round": 2}), draw(partition=1)]
    assert draw() == draw(rate=0.7) == draw(rate=0.7) == draws[0]
    assert len(set(map(tuple, draws))) == 4
    torch.manual_seed(task(seeds).seed)
    assert torch.rand(3).tolist() == draws[0]


def test_torch_is_seeded_before_each_model_to_evaluate():
    message = instruction("evaluate", rate=1.0, rates=[1.0, 0.5, 0.25])
    told = {**TOLD, "rates": "0.5,0.25", "task": "evaluate"}
    for seeded in (
        client.Task(message, node_context(), seeds, seed_torch=True),
        classic.Task(parameters_of(MODELS[0.5]), told, node_context(), seeds, seed_torch=True),
    ):
        assert len({torch.rand(1).item() for _ in seeded.models()}) == 1
