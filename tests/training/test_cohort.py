"""Clients that train together: equal to plain, to the models that fit, and alone where they do not fit or diverge."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.core.randomness import derive
from heterofl_flwr.nn import PreResNet
from heterofl_flwr.nn.preresnet import BottleneckPreResNet
from heterofl_flwr.training import DivergedError, TrainingJob
from heterofl_flwr.training.engines import joint_models
from heterofl_flwr.training.engines.cohort import Cohort, train_cohort
from heterofl_flwr.training.engines.plain import train_plain
from heterofl_flwr.training.engines.structure import log_once
from heterofl_flwr.training.engines.wide_layers import IncompatibleError
from tests.federation.tiny import equal
from tests.training.conftest import OPTIONS, SIZES, Counts, assert_as_plain, exact, make_jobs, small, state


def together(jobs, options):
    """Train clients together, and fail where they would train alone."""
    return Cohort(jobs, options).train()


def on_gpu(jobs: list[TrainingJob]) -> list[TrainingJob]:
    return [replace(job, model=job.model.to("cuda"), split=job.split.to("cuda")) for job in jobs]


class Shares(nn.Module):
    """Uses one layer twice, and reaches it through a list that is no ModuleList as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.again = self.first
        self.plain_list = [self.first]
        self.last = nn.Linear(3 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.again, *self.plain_list):
            x = torch.relu(layer(x))
        return self.last(F.adaptive_max_pool2d(x, 3).flatten(1))


MODELS = {
    **{norm: small(norm=norm, rate=0.5) for norm in ("none", "in", "gn", "ln", "sbn")},
    "preresnet": lambda: PreResNet(3, 5, hidden=(4, 4, 8, 8)),
    "bottleneck": lambda: BottleneckPreResNet(3, 5, blocks=(1, 1), hidden=(4, 8), norm="gn"),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.GroupNorm(2, 8), nn.GELU(), nn.Linear(8, 5)),
    "1d": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, track_running_stats=False), nn.Flatten(), nn.Linear(248, 5)
    ),
    "2d": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3, padding_mode="circular", bias=False),
        nn.BatchNorm2d(6, track_running_stats=False, affine=False),
        nn.GroupNorm(1, 6, affine=False),
        nn.Flatten(),
        nn.Linear(96, 5, bias=False),
    ),
    "3d": lambda: nn.Sequential(
        nn.Unflatten(2, (2, 4)),
        nn.Conv3d(3, 4, 2),
        nn.BatchNorm3d(4, eps=0.1, track_running_stats=False),
        nn.Flatten(),
        nn.Linear(84, 5),
    ),
    "shared layer": Shares,
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_with_any_model_that_fits(name):
    clients, options = make_jobs(exact(MODELS[name])), replace(OPTIONS, proximal=0.1)
    assert_as_plain(clients, together(clients, options), options, make_jobs(exact(MODELS[name])))


@pytest.fixture
def steps(monkeypatch) -> list[list[int]]:
    """Return the clients of each step that a cohort runs."""
    seen, step = [], Cohort._step
    monkeypatch.setattr(Cohort, "_step", lambda self, *args: seen.append(args[1]) or step(self, *args))
    return seen


def test_clients_with_an_odd_last_batch_rejoin_the_others(steps):
    Cohort(make_jobs(small(norm="gn"), (20, 23, 20, 10)), OPTIONS).train()
    # In each of two epochs 4, 5, 4 and 2 batches, all of five but the fifth.
    assert steps == [[0, 1, 2, 3]] * 4 + [[1]] + [[0, 1, 2]] * 4 + [[1]]


@pytest.fixture
def copies(monkeypatch):
    """Return the copies that verifications make; no joint model is free before."""
    seen, double = [], nn.Module.double
    monkeypatch.setattr(nn.Module, "double", lambda model: seen.append(model) or double(model))
    monkeypatch.setattr(joint_models, "_FREE", {})
    return seen


def test_a_verification_copies_two_models(copies):
    """Copies of all would fill a GPU's memory, and plain would train instead."""
    Cohort(make_jobs(small(norm="gn"), (10,) * 4), OPTIONS).train()
    assert len(copies) == 2


class Scaled(nn.Module):
    """Multiplies by a buffer and by a number."""

    def __init__(self, buffer: float = 1.0, number: float = 1.0) -> None:
        super().__init__()
        self.last, self.number = nn.Linear(192, 5), number
        self.register_buffer("factor", torch.tensor(buffer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x.flatten(1)) * self.factor * self.number


def test_equal_models_are_verified_once_in_a_process(copies):
    numbers = []
    for values in ((1.0, 1.0), (1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 1.0)):
        clients, twins = (make_jobs(lambda values=values: Scaled(*values), (20, 20)) for _ in range(2))
        assert_as_plain(clients, together(clients, OPTIONS), OPTIONS, twins, tolerance=1e-5)
        numbers.append(len(copies))
    assert numbers == [2, 2, 4, 6, 6]


def test_a_model_that_ties_parameters_has_no_joint_model_of_one_that_does_not(copies):
    def tied():
        model = Net()
        model.third.weight = model.second.weight
        return model

    together(make_jobs(Net, (20, 20)), OPTIONS)
    with pytest.raises(IncompatibleError, match="layers share parameters"):
        together(make_jobs(tied, (20, 20)), OPTIONS)


def test_threads_have_joint_models_of_their_own():
    ours, twins = ([make_jobs(exact(Scaled), (40, 40)) for _ in range(12)] for _ in range(2))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda clients: together(clients, OPTIONS), ours))
    for clients, own, plain in zip(ours, results, twins, strict=True):
        assert_as_plain(clients, own, OPTIONS, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [SIZES, (40, 40, 41), (13, 61), (40,)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_equals_plain_on_a_gpu(name, sizes):
    def clients(build):
        return on_gpu(make_jobs(build, sizes, classes=[None, [0, 1, 2, 3], None, None][: len(sizes)]))

    ours = clients(exact(MODELS[name]))
    assert_as_plain(ours, together(ours, OPTIONS), OPTIONS, clients(exact(MODELS[name])), tolerance=1e-7)
    results = together(clients(MODELS[name]), OPTIONS)
    expected = train_plain(clients(MODELS[name]), OPTIONS)
    assert [result.loss for result in results] == pytest.approx([result.loss for result in expected], rel=0.05)


class Net(nn.Module):
    """Layers, and between them what a subclass makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 8)
        self.second, self.third = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self.first(x).flatten(1)))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


def net(name: str, between: Callable[[Net, torch.Tensor], torch.Tensor]) -> type[Net]:
    return type(name, (Net,), {"between": between})


Softmax = net("Softmax", lambda self, x: x.softmax(1))
ReadsBack = net("ReadsBack", lambda self, x: x if x.isfinite().all() else x.nan_to_num())
Synchronises = net("Synchronises", lambda self, x: torch.cuda.synchronize() or x)
Rare = net("Rare", lambda self, x: x if torch.rand(()) < 0.999 else 0 * x)
# The values are those of ``Net``, the gradients are not.
Backwards = net("Backwards", lambda self, x: x + x.sum(1, keepdim=True) - x.sum(1, keepdim=True).detach())


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


class Replaces(Looks):
    """Puts a new tensor in place of a buffer."""

    def between(self, x):
        self.seen = self.seen + len(x)
        return x


class OwnBuffer(Net):
    """No client has the constant of another."""

    def __init__(self):
        super().__init__()
        self.register_buffer("constant", torch.rand(()))

    def between(self, x):
        return x * self.constant


class OwnFreeze(Net):
    """Some clients train less than others."""

    def __init__(self):
        super().__init__()
        self.first.weight.requires_grad_(bool(torch.rand(()) > 0.5))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Softmax, "together, logits have other values"),
        (Backwards, "together, gradients have other values"),
        (Tied, "layers share parameters"),
        (Looks, "training changes the buffer seen"),
        (Replaces, "training changes the buffer seen"),
        (Rare, "its forward pass draws random numbers or changes attributes of the model"),
        (Counts, "its forward pass draws random numbers or changes attributes of the model"),
        (OwnBuffer, "the clients' models differ"),
        (OwnFreeze, "the clients' models differ"),
    ],
)
def test_a_model_that_does_not_fit_is_trained_alone(caplog, build, reason):
    """The result is that of plain bit for bit, and no random number is drawn; a log entry says why, once."""
    log_once.cache_clear()
    caplog.set_level(logging.INFO, logger="heterofl_flwr")
    for _ in range(2):
        clients, twins = make_jobs(build), make_jobs(build)
        before = torch.get_rng_state()
        results = train_cohort(clients, OPTIONS)
        assert torch.equal(before, torch.get_rng_state())
        assert results == train_plain(twins, OPTIONS)
        for one, other in zip(clients, twins, strict=True):
            assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in state(one.model).items())
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"clients with a {build.__name__} cannot train together")
    assert reason in caplog.messages[0]


@pytest.mark.gpu
def test_why_steps_are_not_replayed_is_logged_once(caplog):
    log_once.cache_clear()
    caplog.set_level(logging.INFO, logger="heterofl_flwr")
    for _ in range(2):
        train_cohort(on_gpu(make_jobs(ReadsBack, (40, 40))), OPTIONS)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("steps of clients with a ReadsBack cannot be replayed, so they are slower: ")


@pytest.mark.gpu
def test_a_recording_that_fails_leaves_torch_as_it_was():
    """Its allocator returns memory, its generator draws, and others are recorded."""
    train_cohort(on_gpu(make_jobs(Synchronises, (40, 40))), OPTIONS)
    torch.cuda.empty_cache()
    assert torch.rand(3, device="cuda").isfinite().all()
    cohort = Cohort(on_gpu(make_jobs(small(norm="gn"), (40, 40))), OPTIONS)
    replays = []
    cohort._run_steps = lambda together: (Cohort._run_steps(cohort, together), replays.append(cohort._replayed))
    cohort.train()
    assert all(replayed._graph for replayed in replays)


def spoil(job: TrainingJob, at: int) -> TrainingJob:
    """Return a client whose step ``at``, counted from 0, meets NaN."""
    generator = torch.Generator().manual_seed(derive(job.seed, "batches"))
    row = torch.randperm(len(job.split), generator=generator)[at * OPTIONS.batch_size]
    job.split.inputs[row] = torch.nan
    return job


def test_one_that_diverges_is_an_error_and_leaves_all_as_it_was():
    clients = make_jobs(exact(small()))
    received = [state(job.model) for job in clients]
    spoil(clients[1], 2)
    with pytest.raises(DivergedError, match="for 1 of 4 clients that train together, the first being number 2"):
        train_cohort(clients, replace(OPTIONS, epochs=3))
    assert all(equal(state(job.model), before) for job, before in zip(clients, received, strict=True))
