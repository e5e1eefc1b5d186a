"""``Seat``: a model and its optimiser in fixed memory, used by one client after another."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain, islice
from operator import is_not

import torch
from torch import Tensor

from heterofl_flwr.common.errors import HeteroFLError
from heterofl_flwr.core.exchanged import copy_exchanged, first_names, shares_parameters
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.nn.execution import device_of, named_tensors
from heterofl_flwr.training.batches import count_steps, training_epochs
from heterofl_flwr.training.device import Draws, give_back_gaps
from heterofl_flwr.training.engines.plain import STEPS_BETWEEN_GAPS, build_result, check_losses
from heterofl_flwr.training.engines.replayed import Replayed
from heterofl_flwr.training.engines.structure import describe
from heterofl_flwr.training.options import TrainingJob, TrainOptions, TrainResult
from heterofl_flwr.training.step import Masking, ParameterSGD, compute_loss

TURN = 5
"""Largest number of steps in a client's turn; enough to record a new seat's training step in the first turn.

A client that finishes in its first turn leaves its seat to the next client, so such clients do not train side by side.
"""


class UnfitError(HeteroFLError):
    """Error for a client whose training cannot run in a seat."""


def describe_job(job: TrainingJob, options: TrainOptions) -> Hashable:
    """Return a description of a client's model and options. Clients with equal descriptions can share a seat."""
    model, form = job.model, job.quadratic
    switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    precision = *switches, torch.is_autocast_enabled(device_of(model).type)
    # A recorded step reads shared frozen parameters at their present addresses.
    bases = [p.data_ptr() for p in model.parameters() if not p.requires_grad] if shares_parameters(model) else []
    loss = job.joint_loss, job.classes is None, form and (form.strength, len(form.centers), len(form.directions))
    return describe((model, first_names(model), bases, loss, replace(options, learning_rate=1.0), precision))


class Seat:
    """A model and its optimiser in fixed memory, used by one client after another.

    On a GPU, training steps are recorded and replayed, which needs fixed memory.
    """

    def __init__(self, kind: Hashable, job: TrainingJob, options: TrainOptions) -> None:
        self.kind, self.device = kind, device_of(job.model)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if self._stream else None
        self._draws, self._joint_loss = Draws(self.device), job.joint_loss
        self._replayed: dict[tuple[torch.Size, ...], Replayed] = {}
        self._await_others()
        with self.at_work():
            self._model = copy_exchanged(job.model)
            if describe(self._model) != describe(job.model):
                raise UnfitError(
                    "a copy of it differs, for example because one of its functions refers to the original"
                )
            self._description, self._is_tried = describe(self._model), False
            self._tensors = list(named_tensors(self._model).values())
            self._sgd = ParameterSGD(self._model.parameters(), options, job.quadratic)
            if self._stream:
                dtype = torch.float32 if self._sgd.fused else torch.float64  # the fused kernel takes only float32
                self._sgd.learning_rate = torch.tensor(options.learning_rate, dtype=dtype, device=self.device)
            self._masking = Masking(job.classes, options.mask_fill)
            self._correct = torch.zeros((), dtype=torch.int64, device=self.device)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within this context, use the seat's stream and the random state of its client."""
        with torch.cuda.stream(self._stream) if self._stream else nullcontext(), self._draws.current():
            yield

    def _await_others(self) -> None:
        """Make the seat's stream wait for the current stream, which may still write the seat's inputs."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def join(self) -> None:
        """Make the current stream wait for the seat's stream."""
        if self._stream:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    @torch.no_grad()
    def admit(self, job: TrainingJob, options: TrainOptions) -> None:
        """Begin a client's training: copy its parameters and buffers into the seat, and reset the seat's optimiser."""
        self._await_others()
        self._draws.seed(derive(job.seed, "model"))
        with self.at_work():
            for mine, theirs in self._pairs(job):
                mine.copy_(theirs)
            self._sgd.restart(options.learning_rate, job.quadratic)
            self._masking.renew(job.classes)
            self._correct.zero_()

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Run a training step; return the loss. Call this within ``at_work``.

        Raise ``UnfitError`` if the step cannot be recorded as a CUDA graph.
        """
        if self._stream is None:
            return self._compute(inputs, targets)[0]
        shapes = inputs.shape, targets.shape
        if shapes not in self._replayed:
            self._replayed[shapes] = Replayed(self._compute, self._stream, self._pool)
        (loss,) = self._replayed[shapes](inputs, targets)
        if reason := self._replayed[shapes].obstacle:
            raise UnfitError(reason)
        return loss

    def _compute(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor]:
        loss, hits = compute_loss(self._model, inputs, targets, self._masking, self._joint_loss)
        self._sgd.minimise(loss)
        self._correct.add_(hits.sum())
        return (loss.detach(),)

    @torch.no_grad()
    def release(self, job: TrainingJob, losses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Copy the seat's parameters and buffers into the client's model; return two tensors.

        The first has ``losses``, the second is the number of correct predictions. On a GPU, call ``join`` before you
        read the model or these tensors. The next client can use the seat at once. Raise ``UnfitError`` if training has
        changed attributes of the seat's model. On a GPU, this is checked for the seat's first client alone,
        because replayed steps run no Python code.
        """
        with self.at_work():
            if not (self._stream and self._is_tried):
                # A recorded step would always read the tensor that was replaced.
                is_new = any(map(is_not, named_tensors(self._model).values(), self._tensors))
                if is_new or describe(self._model) != self._description:
                    raise UnfitError("its forward pass changes attributes of the model")
            self._is_tried = True
            results = torch.stack(list(losses)), self._correct.clone()
            for mine, theirs in self._pairs(job):
                theirs.copy_(mine)
        job.model.zero_grad()
        return results

    def _pairs(self, job: TrainingJob) -> list[tuple[Tensor, Tensor]]:
        theirs = named_tensors(job.model)
        pairs = {id(mine): (mine, theirs[name]) for name, mine in named_tensors(self._model).items()}
        return [(mine, other) for mine, other in pairs.values() if mine is not other]

    def close(self) -> None:
        """Free the recorded steps, which would keep the seat in memory."""
        self.join()
        self._replayed.clear()


class Client:
    """A client that trains in a seat."""

    def __init__(self, job: TrainingJob, options: TrainOptions, seat: Seat) -> None:
        self.job, self.seat, self._options = job, seat, options
        self._batches = chain.from_iterable(training_epochs(job, options))
        self._steps = count_steps(job, options)
        self._losses: list[Tensor] = []
        self._correct = torch.zeros(())
        self.sizes: list[int] = []

    def advance(self) -> bool:
        """Run up to ``TURN`` training steps; return whether the client has finished."""
        if not self.sizes:
            self.seat.admit(self.job, self._options)
        with self.seat.at_work():
            for inputs, targets in islice(self._batches, TURN):
                self._losses.append(self.seat.step(inputs, targets))
                self.sizes.append(targets.numel())
                if self.seat.device.type == "cpu" and len(self.sizes) % STEPS_BETWEEN_GAPS == 0:
                    give_back_gaps()
        if len(self.sizes) < self._steps:
            return False
        losses, self._correct = self.seat.release(self.job, self._losses)
        self._losses = [losses]
        return True

    def finish(self) -> TrainResult:
        """Wait for the GPU; return the client's result. Raise ``DivergedError`` if a loss is not finite."""
        self.seat.join()
        check_losses(self._losses[0], 0, self._options)
        return build_result(self.job, self._losses, self.sizes, int(self._correct))
