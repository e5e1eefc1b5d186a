"""Clients in seats: the bits of plain, whoever else trains and whoever had the seat; those that cannot have one."""

import logging
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.nn.inner_widths import Nested
from heterofl_flwr.training import DivergedError, TrainingJob
from heterofl_flwr.training.device import random_states
from heterofl_flwr.training.engines import seat, seats
from heterofl_flwr.training.engines.seats import Hall, Round, train_seats
from heterofl_flwr.training.engines.structure import log_once
from heterofl_flwr.training.inplace_distillation import nested_loss
from heterofl_flwr.transport.arrays import pack_tensors, read_tensors
from tests.federation.tiny import equal
from tests.training.conftest import OPTIONS, Counts, assert_as_plain, exact, make_jobs, small, state, train_seated
from tests.training.test_cohort import Net, ReadsBack, Replaces, Tied, on_gpu, spoil
from tests.training.test_engines import METHODS

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("channels_first")  # as in seats


def drops() -> nn.Module:
    """Return a model that draws random numbers and has running statistics."""
    return nn.Sequential(small(norm="gn")(), nn.BatchNorm1d(5), nn.Dropout(0.3))


class Draws(nn.Module):
    """A model that draws from each global generator."""

    def __init__(self):
        super().__init__()
        self.model = small(norm="gn")()

    def forward(self, x):
        return self.model(x) * (random.random() + np.random.rand() + torch.rand(()))  # noqa: NPY002 - as models may


@pytest.fixture
def made(monkeypatch) -> list[seat.Seat]:
    """Return the list of all seats that are made."""
    new = []

    class Counted(seat.Seat):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            new.append(self)

    monkeypatch.setattr(seats, "Seat", Counted)
    return new


@pytest.mark.parametrize(("most", "number"), [(1, 1), (3, 3), (9, 4)])
def test_clients_that_take_turns_draw_and_train_as_alone(monkeypatch, made, most, number):
    monkeypatch.setattr(seat, "TURN", 2)
    ours, twins = (make_jobs(drops, classes=[range(4), [0, 1, 2, 3], [0, 1, 2, 3, 4], range(5)]) for _ in range(2))
    assert_as_plain(ours, train_seated(ours, OPTIONS, most), OPTIONS, twins, 0.0)
    assert len(made) == number


def test_clients_that_take_turns_draw_from_all_generators_as_alone(monkeypatch):
    monkeypatch.setattr(seat, "TURN", 2)
    ours, twins = make_jobs(Draws), make_jobs(Draws)
    before = random_states(CPU)
    assert_as_plain(ours, train_seated(ours, OPTIONS), OPTIONS, twins, 0.0)
    assert before == random_states(CPU)


def test_clients_with_few_steps_sit_side_by_side(made):
    """Else a GPU would train one after the other."""
    train_seated(make_jobs(small(norm="gn"), (20, 20, 20)), OPTIONS, most=9)
    assert len(made) == 3


def test_a_seat_is_used_again_for_the_same_kind_and_options_alone(made):
    hall = Hall(CPU, 9)

    def train(build, options=OPTIONS, **changes):
        for job in make_jobs(build, (11, 8)):
            train_seated([replace(job, **changes)], options, hall=hall)

    for _ in range(2):
        train(drops)
    train(drops, replace(OPTIONS, learning_rate=0.3))
    assert len(made) == 1
    train(lambda: nn.Sequential(small(norm="gn")(), nn.BatchNorm1d(5), nn.Dropout(0.2)))
    train(drops, replace(OPTIONS, clip=0.5))
    train(drops, classes=[0, 1, 2, 3])
    train(small(norm="gn", rate=0.5))
    assert len(made) == 5


def test_tied_layers_have_a_seat_of_their_own(made):
    """Their class and their shapes may be those of layers that are not tied."""
    hall = Hall(CPU, 9)
    for tied in (True, False):
        ours, twins = (make_jobs(partial(Ties, tied), (11,)) for _ in range(2))
        assert_as_plain(ours, train_seated(ours, OPTIONS, hall=hall), OPTIONS, twins, 0.0)
    assert len(made) == 2


def test_a_reply_taken_before_the_seat_is_used_again_does_not_change(made):
    hall = Hall(CPU, 1)
    first, second = make_jobs(drops, (12, 12))
    train_seated([first], OPTIONS, hall=hall)
    reply = pack_tensors(exchanged_parameters(first.model))
    before = {name: tensor.clone() for name, tensor in read_tensors(reply).items()}
    buffers = state(first.model)
    train_seated([second], OPTIONS, hall=hall)
    assert len(made) == 1
    assert equal(read_tensors(reply), before)
    assert equal(state(first.model), buffers)
    assert not equal(state(second.model), buffers)


class Ties(Tied):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        if not tied:
            self.third.weight = nn.Parameter(self.second.weight.detach().clone())


class Closes(Net):
    """Holds a function that refers to the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.function = lambda x: self.second(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.first(x).flatten(1))


class Uncopyable(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.stream = small(norm="gn")(), (number for number in range(3))

    def forward(self, x):
        return self.model(x)


def hooked() -> nn.Module:
    model = small(norm="gn")()
    model.register_forward_hook(lambda *_: None)
    return model


def pulled(job: TrainingJob) -> TrainingJob:
    return replace(job, penalty=lambda: 0.1 * job.model.linear.weight.square().sum())


@pytest.mark.parametrize(
    ("build", "change", "reason"),
    [
        (Counts, lambda job: job, "its forward pass changes attributes of the model"),
        (Replaces, lambda job: job, "its forward pass changes attributes of the model"),
        (
            Closes,
            lambda job: job,
            "a copy of it differs, for example because one of its functions refers to the original",
        ),
        (Uncopyable, lambda job: job, "TypeError: cannot pickle 'generator' object"),
        (hooked, lambda job: job, "a hook watches layer (the model itself)"),
        (small(norm="gn"), pulled, "a stage adds a function to its loss"),
    ],
)
def test_a_client_that_cannot_have_a_seat_is_trained_by_plain(caplog, build, change, reason):
    """Beside one that can; a log entry says why, once."""
    log_once.cache_clear()
    caplog.set_level(logging.INFO, logger="heterofl_flwr")
    hall = Hall(CPU, 2)
    for _ in range(2):
        ours, twins = ([change(job) for job in make_jobs(build, (11, 8))] + make_jobs(drops, (9,)) for _ in range(2))
        assert_as_plain(ours, Round(ours, OPTIONS, hall).train(), OPTIONS, twins, 0.0)
    assert len(hall._free) == 1
    kind = type(ours[0].model).__name__
    assert caplog.messages == [f"clients with a {kind} train one by one, so they are slower: {reason}"]


def test_no_gpu_records_the_dropout_of_recurrent_layers():
    """Whose random state cuDNN holds for all models, and torch replaces."""
    hall = Hall(torch.device("cuda", 0), 2)
    (job,) = make_jobs(lambda: nn.Sequential(nn.Flatten(), nn.GRU(192, 5, 2, dropout=0.5)), (8,))
    with pytest.raises(seat.UnfitError, match="layer 1 is recurrent and has dropout"):
        hall.take(job, OPTIONS)


def test_clients_wait_where_memory_runs_out(monkeypatch, made):
    """Those that were refused begin again in a seat that another has left."""
    step = seat.Seat.step

    def limited(self, *batch):
        if len(hall._taken) > 2:
            raise torch.OutOfMemoryError("no memory")
        return step(self, *batch)

    monkeypatch.setattr(seat.Seat, "step", limited)
    monkeypatch.setattr(seat, "TURN", 2)
    hall = Hall(CPU, 9)
    ours, twins = make_jobs(drops), make_jobs(drops)
    assert_as_plain(ours, train_seated(ours, OPTIONS, hall=hall), OPTIONS, twins, 0.0)
    assert len(made) == 3
    assert len(hall._free) == 2
    monkeypatch.setattr(seat.Seat, "step", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(torch.OutOfMemoryError, match="none at all"):
        Round(make_jobs(drops), OPTIONS, hall).train()
    assert not hall._taken


def test_errors_are_those_of_plain_and_leave_no_seat_taken():
    hall = Hall(CPU, 3)
    clients = make_jobs(small(norm="gn"))
    spoil(clients[1], 2)
    with pytest.raises(DivergedError, match=r"the loss of step 3 is nan at learning rate 0\.05"):
        Round(clients, OPTIONS, hall).train()
    assert not hall._taken
    clients, twins = make_jobs(small(norm="gn")), make_jobs(small(norm="gn"))
    assert_as_plain(clients, Round(clients, OPTIONS, hall).train(), OPTIONS, twins, 0.0)


def gpu_hall() -> Hall:
    return Hall(torch.device("cuda", torch.cuda.current_device()), 64)


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_on_a_gpu_as_by_plain(method):
    """In three rounds, of which the last one replays, and with the draws of dropout."""
    ours, twins, hall = on_gpu(METHODS[method]()), on_gpu(METHODS[method]()), gpu_hall()
    for learning_rate in (0.05, 0.02, 0.01):
        options = replace(OPTIONS, learning_rate=learning_rate)
        assert_as_plain(ours, train_seated(ours, options, hall=hall), options, twins, 1e-3)
    for used in hall._free:
        assert any(replayed._graph for replayed in used._replayed.values())


@pytest.mark.gpu
def test_more_seats_than_torch_has_streams_share_no_workspace(monkeypatch):
    """The workspace of cuBLAS is that of a stream."""
    monkeypatch.setattr(seat, "TURN", 2)

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.ReLU(), nn.Linear(256, 5))

    ours, twins = (on_gpu(make_jobs(exact(build), (40,) * 50)) for _ in range(2))
    hall = gpu_hall()
    for _ in range(2):
        assert_as_plain(ours, train_seated(ours, OPTIONS, hall=hall), OPTIONS, twins, 1e-7)
    assert len(hall._free) == 50


@pytest.mark.gpu
def test_what_cannot_be_recorded_is_trained_by_plain(caplog):
    log_once.cache_clear()
    caplog.set_level(logging.INFO, logger="heterofl_flwr")
    inner = small(norm="gn", rate=0.5)
    nested = [
        replace(job, model=Nested(job.model, [inner()], "drawn"), joint_loss=nested_loss)
        for job in make_jobs(small(norm="gn"), (40, 40))
    ]
    jobs = on_gpu([*make_jobs(ReadsBack, (40, 40)), *nested])
    for _ in range(2):
        train_seats(jobs, OPTIONS)
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("clients with a ReadsBack train one by one, so they are slower: ")
    assert caplog.messages[1].endswith("it draws random numbers on the CPU")


@pytest.mark.gpu
def test_seats_are_limited_by_memory(monkeypatch, made):
    monkeypatch.setattr(seats, "RESERVE", 2.0)
    ours, twins, hall = on_gpu(make_jobs(exact(drops))), on_gpu(make_jobs(exact(drops))), gpu_hall()
    assert_as_plain(ours, train_seated(ours, OPTIONS, hall=hall), OPTIONS, twins, 1e-6)
    assert len(made) == 1
    assert all(size > 0 for size in hall._sizes.values())
