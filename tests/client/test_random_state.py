"""The global random generators: what stands around a user's loop leaves them alone, unless it is asked to seed."""

import random

import numpy as np
import pytest
import torch

from heterofl_flwr import classic as legacy
from heterofl_flwr import client
from heterofl_flwr.classic import parameters_of
from heterofl_flwr.core.randomness import initial_state
from tests.client import test_client as client_tests
from tests.federation.tiny import Tiny, inputs

MODELS = {rate: Tiny(rate, norm=True) for rate in (1.0, 0.7, 0.5)}
TOLD = {"rate": 0.5, "global-rate": 1.0, "seed": 0, "server-round": 1, "partition": 0, "heterofl-schema": 1}


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


def classic(function, build, **told):
    return function(parameters_of(MODELS[0.5]), {**TOLD, **told}, build)


CALLS = {
    "submodel": lambda build: client.submodel(instruction(), build),
    "to evaluate": lambda build: client.submodel(instruction("evaluate"), build),
    "not shared": lambda build: client.submodel(instruction(shared=[""]), build),
    "models_to_evaluate": lambda build: list(
        client.models_to_evaluate(instruction("evaluate", rate=1.0, rates=[1.0, 0.5]), build)
    ),
    "answer_moments": lambda build: client.answer_moments(instruction("query.moments"), build, lambda: [inputs(0)]),
    "reply": lambda build: client.reply(instruction(upload="int8"), MODELS[0.5], num_examples=1),
    "classic submodel": lambda build: classic(legacy.submodel, build),
    "classic models_to_evaluate": lambda build: list(
        classic(legacy.models_to_evaluate, build, rates="0.5,0.25", task="evaluate")
    ),
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
    client.submodel(instruction(**told), seeds, seed_torch=True)


def asked_classically(**told):
    legacy.submodel(parameters_of(MODELS[told.get("rate", 0.5)]), {**TOLD, **told}, seeds, seed_torch=True)


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
    torch.manual_seed(client.seed_of(instruction()))
    assert torch.rand(3).tolist() == draws[0]


def test_torch_is_seeded_before_each_model_to_evaluate():
    message = instruction("evaluate", rate=1.0, rates=[1.0, 0.5, 0.25])
    assert len({torch.rand(1).item() for _ in client.models_to_evaluate(message, seeds, seed_torch=True)}) == 1
    told = {**TOLD, "rates": "0.5,0.25", "task": "evaluate"}
    models = legacy.models_to_evaluate(parameters_of(MODELS[0.5]), told, seeds, seed_torch=True)
    assert len({torch.rand(1).item() for _ in models}) == 1
