"""The engine ``seats``: clients train at the same time, each in a seat (``engines/seat.py``)."""

from collections import deque
from collections.abc import Hashable, Sequence
from functools import lru_cache

import torch

from heterofl_flwr.nn.execution import device_of
from heterofl_flwr.training.device import seeded
from heterofl_flwr.training.engines.plain import train_plain
from heterofl_flwr.training.engines.seat import Client, Seat, UnfitError, describe_job
from heterofl_flwr.training.engines.structure import find_hook, find_rnn_dropout, log_once
from heterofl_flwr.training.options import TrainingJob, TrainOptions, TrainResult

MOST = {"cpu": 1, "cuda": 64}
"""Largest number of seats by device type. On a CPU, several seats would evict each other's data from the cache."""

RESERVE = 0.1
"""Fraction of a GPU's memory that new seats must leave free."""


def train_seats(jobs: Sequence[TrainingJob], options: TrainOptions) -> list[TrainResult]:
    """Train clients in seats: on a GPU at the same time, on a CPU one by one. Results equal ``plain``'s up to rounding.

    A seat is a copy of a model with its optimiser. On a GPU, it replays training steps as CUDA graphs. If memory is
    short, clients wait for a seat. ``plain`` trains clients on other devices, clients with a ``penalty``, and models
    that cannot be copied, have hooks or change their attributes. On a GPU, ``plain`` also trains models that copy
    values to the CPU, draw random numbers on the CPU, or have recurrent layers with dropout. Raise ``DivergedError`` if
    a loss is not finite.
    """
    device = device_of(jobs[0].model)
    if device.type not in MOST:
        return train_plain(jobs, options)
    with seeded(0, device):
        return Round(jobs, options, hall_of(device)).train()


class Hall:
    """Pool of the seats of a device."""

    def __init__(self, device: torch.device, most: int) -> None:
        self._device, self._most = device, most
        self._free: list[Seat] = []  # in the order of their last use
        self._taken: list[Seat] = []
        self._free_before = 0  # free bytes before the newest seat was made
        self._sizes: dict[Hashable, int] = {}  # bytes of a seat by kind
        self.obstacles: dict[Hashable, str] = {}  # reasons against a seat by kind

    def take(self, job: TrainingJob, options: TrainOptions) -> Seat | None:
        """Return a free or new seat for a client, or None if the client must wait.

        Raise ``UnfitError`` if the client cannot use a seat.
        """
        job.model.train()
        kind = describe_job(job, options)
        reason = "a stage adds a function to its loss" if job.penalty else find_hook(job.model)
        if self._device.type == "cuda":
            reason = reason or find_rnn_dropout(job.model)
        if reason := reason or self.obstacles.get(kind):
            raise UnfitError(reason)
        seat = next((seat for seat in reversed(self._free) if seat.kind == kind), None)
        if seat is not None:
            self._free.remove(seat)
        else:
            while not (has_room := self._has_room(kind)) and self._free:
                self._free.pop(0).close()
            if not has_room and self._taken:
                return None
            try:
                seat = Seat(kind, job, options)
            except (TypeError, RuntimeError) as error:  # the model cannot be copied
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise UnfitError(f"{type(error).__name__}: {error}") from error
        self._taken.append(seat)
        return seat

    def _has_room(self, kind: Hashable) -> bool:
        if len(self._free) + len(self._taken) >= self._most:
            return False
        if self._device.type != "cuda":
            return True
        self._free_before, total = self._read_memory()
        return self._free_before - self._sizes.get(kind, 0) > RESERVE * total

    def measure(self, seat: Seat) -> None:
        """Store how much GPU memory a new seat has taken, unless this is known for its kind."""
        if self._device.type == "cuda" and seat.kind not in self._sizes:
            self._sizes[seat.kind] = self._free_before - self._read_memory()[0]

    def _read_memory(self) -> tuple[int, int]:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)

    def leave(self, seat: Seat, *, stays: bool = True) -> None:
        """Make a seat available to the next client, or close it if ``stays`` is False."""
        self._taken.remove(seat)
        if stays:
            self._free.append(seat)
        else:
            seat.close()

    def shrink(self) -> None:
        """Close free seats, and reduce the pool's maximum size to the number of taken seats, but not below 1.

        Call this when memory has run out.
        """
        while self._free:
            self._free.pop().close()
        self._most = max(len(self._taken), 1)


@lru_cache
def hall_of(device: torch.device) -> Hall:
    """Return the pool of a device's seats, the same object in all calls."""
    return Hall(device, MOST[device.type])


class Round:
    """Clients that take turns in seats until all have finished."""

    def __init__(self, jobs: Sequence[TrainingJob], options: TrainOptions, hall: Hall) -> None:
        self._jobs, self._options, self._hall = jobs, options, hall
        self._waiting, self._seated, self._done = deque(jobs), list[Client](), list[Client]()
        self._alone: list[TrainingJob] = []

    def train(self) -> list[TrainResult]:
        """Train the clients. Return their results in the order of ``jobs``."""
        try:
            while self._waiting or self._seated:
                while self._waiting and self._seat_next():
                    pass
                for client in list(self._seated):
                    self._advance(client)
        finally:
            for client in self._seated:  # after an error
                self._hall.leave(client.seat, stays=False)
        results = {id(client.job): client.finish() for client in self._done}
        results |= {id(job): train_plain([job], self._options)[0] for job in self._alone}
        return [results[id(job)] for job in self._jobs]

    def _seat_next(self) -> bool:
        """Give the first waiting client a seat and run its first steps. Return False if the client must wait.

        If the client cannot use a seat, leave it to ``plain``.
        """
        job = self._waiting[0]
        try:
            seat = self._hall.take(job, self._options)
        except UnfitError as error:
            self._waiting.popleft()
            self._leave_alone(job, error)
        except torch.OutOfMemoryError:
            if not self._seated:
                raise
            self._hall.shrink()
            return False
        else:
            if seat is None:
                return False
            client = Client(job, self._options, seat)
            self._seated.append(client)
            self._waiting.popleft()
            self._advance(client)
        return True

    def _advance(self, client: Client) -> None:
        """Run a client's next steps, and close its seat if they fail.

        After an ``UnfitError``, ``plain`` trains the client from the beginning. If memory has run out, the client waits
        for another seat; but if no other client has a seat, the error is raised. A client can begin again, because its
        model changes only at the end of its training.
        """
        try:
            is_done = client.advance()
        except UnfitError as error:
            self._hall.obstacles[client.seat.kind] = str(error)
            self._leave(client, stays=False)
            self._leave_alone(client.job, error)
        except torch.OutOfMemoryError:
            if len(self._seated) == 1:
                raise
            self._leave(client, stays=False)
            self._hall.shrink()
            self._waiting.appendleft(client.job)
        else:
            self._hall.measure(client.seat)
            if is_done:
                self._done.append(client)
                self._leave(client)

    def _leave(self, client: Client, *, stays: bool = True) -> None:
        self._seated.remove(client)
        self._hall.leave(client.seat, stays=stays)

    def _leave_alone(self, job: TrainingJob, reason: UnfitError) -> None:
        self._alone.append(job)
        log_once(f"clients with a {type(job.model).__name__} train one by one, so they are slower: {reason}")
