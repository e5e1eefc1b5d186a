"""The example of an app that fine-tunes a language model with adapters of unequal rank."""

import copy
from importlib import import_module

import pytest
import torch
from flwr.app import Context, RecordDict

from tests.adapters.nets import load_peft, load_transformers
from tests.simulations.test_examples import run

NODES, ROUNDS = 4, 2

pytestmark = pytest.mark.release  # test_lora_rounds.py has rounds of smaller models


@pytest.fixture(scope="module")
def app():
    load_peft()
    load_transformers()
    with torch.random.fork_rng():  # it draws a model when it is loaded
        return import_module("simulations.examples.lora_app")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("levels")


@pytest.fixture(scope="module")
def grid(app, folder):
    """Run the app; return the grid, which has kept what was sent."""
    return run(app, NODES, ROUNDS, folder=str(folder))


def test_clients_send_adapters_of_their_ranks_alone(grid):
    arrays = [message.content["arrays"] for message in grid.of("train")]
    assert all(".lora_" in name for own in arrays for name in own)
    name = "base_model.model.transformer.h.1.mlp.c_fc.lora_A.default.weight"
    assert [own[name].shape for own in arrays] == [(rank, 64) for rank in (16, 8, 4, 2)] * ROUNDS


def test_the_adapters_learn_the_clients_texts(app, grid, folder):
    rows = torch.cat([app.load(Context(1, 1, {"partition-id": part}, RecordDict(), {}), test=True) for part in (0, 1)])
    base = app.build(1.0)
    trained = load_peft().PeftModel.from_pretrained(copy.deepcopy(base).unload(), folder / "a")  # as peft reads it
    with torch.inference_mode():
        losses = [model.eval()(input_ids=rows, labels=rows).loss for model in (trained, base)]
    assert losses[0] < losses[1] - 0.02
