"""Training of one client: reproducible from its seed, and stopped where the loss is not finite."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from heterofl_flwr.training import DivergedError, TrainOptions, train
from tests.federation.tiny import equal
from tests.training.conftest import OPTIONS, state


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * random.random() * np.random.rand()  # noqa: NPY002


def test_is_the_same_bit_for_bit_whatever_was_drawn_before(build, split):
    def run(seed):
        model = nn.Sequential(build(), nn.Dropout(0.5), Noisy())
        result = train(model, split, replace(OPTIONS, augment="crop-flip"), classes=[0, 1, 2, 3], seed=seed)
        return state(model), result

    (one, result), *_ = run(3), torch.rand(5), random.random(), np.random.rand()  # noqa: NPY002
    two, again = run(3)
    other, _ = run(4)
    assert equal(one, two)
    assert result == again
    assert not equal(one, other)


def test_divergence_is_found_in_the_epoch_where_it_happens(build, split):
    steps = []
    model = build(norm="none")
    model.register_forward_hook(lambda *_: steps.append(1))
    options = TrainOptions(learning_rate=1e6, epochs=50, batch_size=5, clip=None)
    with pytest.raises(DivergedError, match=r"loss of step \d+ is nan at learning rate 1e\+06: lower it or clip"):
        train(model, split, options, seed=1)
    assert len(steps) <= 10


@pytest.mark.gpu
def test_equals_the_cpu_on_a_gpu(build, split):
    here, there = build(), build().to("cuda")
    options = replace(OPTIONS, augment="crop-flip")
    one = train(here, split, options, classes=range(4), seed=1)
    two = train(there, split, options, classes=range(4), seed=1)
    assert two.loss == pytest.approx(one.loss, rel=1e-3)
    for name, value in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name].cpu(), value, rtol=1e-2, atol=1e-3)
