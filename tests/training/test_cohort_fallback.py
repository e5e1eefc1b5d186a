"""Models that cannot train together, or not in every way."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.training.engines import cohort
from heterofl_flwr.training.engines.cohort import Cohort, train_cohort
from heterofl_flwr.training.engines.joint import Vmapped, Wide
from heterofl_flwr.training.engines.plain import log_once, train_plain
from tests.training.cohorts import OPTIONS, assert_as_plain, exact, jobs, state


class Net(nn.Module):
    """Two layers, and between them what a subclass makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 8)
        self.second = nn.Linear(4, 5)
        self.third = nn.Linear(4, 5)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self.drop(self.first(x).flatten(1))))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


class FixedShape(Net):
    def between(self, x):
        return x.view(-1, 4)


class Softmax(Net):
    def between(self, x):
        return x.softmax(1)


class Pairs(Net):
    def between(self, x):
        return torch.cat([x, x], 1)[:, :4]


class Backwards(Net):
    """The values are those of ``Net``, the gradients are not."""

    def between(self, x):
        total = x.sum(1, keepdim=True)
        return x + total - total.detach()


class OneMore(Net):
    """Where there are four channels, another layer gets a gradient, of zeros."""

    def between(self, x):
        return x + 0 * self.third(x)[:, :4] if x.shape[1] == 4 else x


class Cut(Net):
    def forward(self, x):
        return super().forward(x)[:, :4]


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.third.weight = self.second.weight

    def forward(self, x):
        return super().forward(x) + self.third(self.first(x).flatten(1))


class Looks(Net):
    """Changes a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def between(self, x):
        self.seen += len(x)
        return x


class Noise(Net):
    def between(self, x):
        return F.dropout(x, 0.5, self.training)


class OwnBuffer(Net):
    """No client has the constant of another."""

    def __init__(self):
        super().__init__()
        self.register_buffer("constant", torch.rand(()))

    def between(self, x):
        return x * self.constant


class Dropout(Net):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)


class Running(Net):
    def __init__(self):
        super().__init__()
        self.drop = nn.BatchNorm1d(4)


class OwnFreeze(Net):
    """Some clients train less than others."""

    def __init__(self):
        super().__init__()
        self.first.weight.requires_grad_(bool(torch.rand(()) > 0.5))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (FixedShape, "wide): RuntimeError: shape"),
        (Softmax, "together, logits have other values"),
        (Pairs, "wide): RuntimeError: shape"),
        (Backwards, "together, gradients have other values"),
        (OneMore, "together, other parameters get gradients"),
        (Cut, "together, logits have another shape"),
        (Tied, "layers share parameters"),
        (Looks, "training changes the buffer seen"),
        (Noise, "the forward pass draws random numbers"),
        (OwnBuffer, "the clients' models differ"),
        (OwnFreeze, "the clients' models differ"),
        (Dropout, "layer drop draws random numbers"),
        (Running, "layer drop changes its running statistics"),
    ],
)
def test_a_model_that_does_not_fit_is_trained_alone(caplog, build, reason):
    """The result is that of plain bit for bit; a log entry says why, once."""
    log_once.cache_clear()
    caplog.set_level(logging.INFO, logger="heterofl_flwr")
    for _ in range(2):
        clients, twins = jobs(build), jobs(build)
        results = train_cohort(clients, OPTIONS)
        assert results == train_plain(twins, OPTIONS)
        for one, other in zip(clients, twins, strict=True):
            assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in state(one).items())
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"clients with a {build.__name__} cannot train together")
    assert reason in caplog.messages[0]


@pytest.mark.parametrize("build", [FixedShape, Softmax, Pairs, Backwards, Tied, Net])
def test_vmap_takes_what_does_not_fit_side_by_side(build):
    clients = jobs(exact(build))
    assert_as_plain(clients, Cohort(clients, OPTIONS, Vmapped).train(), OPTIONS, jobs(exact(build)))


def test_the_next_way_is_tried(monkeypatch):
    monkeypatch.setattr(cohort, "WAYS", {"cpu": (Wide, Vmapped)})
    monkeypatch.setattr(cohort, "train_plain", None)
    clients = jobs(exact(Softmax))
    assert_as_plain(clients, train_cohort(clients, OPTIONS), OPTIONS, jobs(exact(Softmax)))


def test_vmap_leaves_bfloat16_to_others(monkeypatch):
    monkeypatch.setattr(cohort, "WAYS", {"cpu": (Vmapped,)})
    options = replace(OPTIONS, precision="bfloat16")
    assert train_cohort(jobs(Net), options) == train_plain(jobs(Net), options)


def test_hooks_are_called():
    calls = []
    clients = jobs(Net, (10, 10))
    clients[1].model.register_forward_hook(lambda *_: calls.append(1))
    train_cohort(clients, OPTIONS)
    assert len(calls) == 4


def test_a_model_given_twice_is_trained_twice():
    first, second = jobs(Net, (10, 10))
    second = replace(second, model=first.model)
    one, two = jobs(Net, (10, 10))
    two = replace(two, model=one.model)
    assert train_cohort([first, second], OPTIONS) == train_plain([one, two], OPTIONS)


def test_a_model_that_draws_numbers_leaves_the_global_random_state_alone():
    clients = jobs(Noise)
    before = torch.get_rng_state()
    train_cohort(clients, OPTIONS)
    assert torch.equal(before, torch.get_rng_state())
