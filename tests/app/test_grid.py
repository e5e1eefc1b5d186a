"""How a run's grid shares out this machine."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from heterofl_flwr.app.launch.request import Request, Share
from heterofl_flwr.app.launch.running import cohort_limit
from heterofl_flwr.app.task import load_task
from heterofl_flwr.settings.flat import from_flat, to_flat

pytestmark = pytest.mark.usefixtures("identity")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Return a function that makes a request for settings and a device."""

    def ask(settings, device):
        config = to_flat(from_flat(settings))
        monkeypatch.setitem(vars(load_task(config)), "device", torch.device(device))
        return Request(config=config, out=tmp_path, clients=100, share=Share())

    return ask


def message_of(number):
    """Return a message that brings so many parameters."""
    arrays = ArrayRecord({"w": Array(np.zeros(number, dtype=np.float32))})
    return Message(RecordDict({"arrays": arrays, "config": ConfigRecord()}), 5, "train")


@pytest.mark.parametrize(
    ("settings", "device", "small", "large"),
    [
        ({}, "cpu", 5, 1),
        ({"engine.cohort": 3}, "cpu", 3, 1),
        ({"engine.name": "cohort"}, "cpu", 5, 5),
        ({"engine.name": "plain"}, "cpu", 1, 1),
        ({}, "cuda", 50, 50),
        ({"engine.name": "compile"}, "cuda", 1, 1),
    ],
)
def test_clients_train_together_where_that_pays(asked, settings, device, small, large):
    cohort = cohort_limit(asked(settings, device))
    assert (cohort(message_of(1000)), cohort(message_of(1_000_000))) == (small, large)
