"""The engine ``cohort``: the models of several clients are joined and trained at once."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from heterofl_flwr.core.exchanged import shares_parameters
from heterofl_flwr.nn.execution import device_of
from heterofl_flwr.nn.loss import class_mask, mask_logits
from heterofl_flwr.nn.penalty import AlignedQuadratic
from heterofl_flwr.training.batches import count_steps, steps_per_epoch, training_epochs
from heterofl_flwr.training.device import Draws, seeded
from heterofl_flwr.training.engines.joint_models import Joint, Layout, build_layouts, take_verified
from heterofl_flwr.training.engines.plain import DivergedError, build_result, train_plain
from heterofl_flwr.training.engines.replayed import Replayed
from heterofl_flwr.training.engines.structure import find_hook, log_once
from heterofl_flwr.training.engines.wide_layers import IncompatibleError
from heterofl_flwr.training.options import TrainingJob, TrainOptions, TrainResult
from heterofl_flwr.training.step import SGD

LEAST = {"cpu": 2, "cuda": 1}
"""Smallest number of clients for this engine, by device type. On other devices, the engine ``plain`` trains clients.

On a GPU, this engine is faster even for one client, because it replays steps as CUDA graphs.
"""

Compute = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""Training step of several clients: a function of their inputs and targets.

It returns their losses and their numbers of correct predictions, two tensors of shape (clients,).
"""


def train_cohort(jobs: Sequence[TrainingJob], options: TrainOptions) -> list[TrainResult]:
    """Train clients together. Their results equal those of the engine ``plain``, up to rounding.

    A new joint model is first verified on one batch. On a GPU, steps are replayed as a CUDA graph. The engine ``plain``
    trains the clients if they are fewer than ``LEAST``, or if training together raises an error other than
    ``DivergedError``. A failed verification raises such an error, and so does a model with active dropout, running
    statistics, hooks, or parameters shared with other models.

    Raises
    ------
    DivergedError
        If a loss is NaN or infinite. All models are then unchanged.
    """
    device, kind = device_of(jobs[0].model), type(jobs[0].model).__name__
    if len(jobs) >= LEAST.get(device.type, math.inf):
        try:
            # Draws: a recording that fails can make the current generator of a GPU unusable.
            with seeded(0, device), Draws(device).current():
                return Cohort(jobs, options).train()
        except DivergedError:
            raise
        except Exception as error:  # if the cause persists, plain reports it
            log_once(f"clients with a {kind} cannot train together: {type(error).__name__}: {error}")
    return train_plain(jobs, options)


def find_obstacle(model: nn.Module) -> str | None:
    """Return the reason why clients with this model cannot train together, or None."""
    for name, layer in model.named_modules():
        what = f"layer {name or '(the model itself)'}"
        if isinstance(layer, _DropoutNd) and layer.p:
            return f"{what} draws random numbers"
        if isinstance(layer, _NormBase) and layer.running_mean is not None:
            return f"{what} changes its running statistics"
    if shares_parameters(model):
        return "it shares parameters with other models"
    return find_hook(model)


class _Client:
    def __init__(self, job: TrainingJob, options: TrainOptions) -> None:
        self.job, self.remaining = job, count_steps(job, options)
        self._batches = chain.from_iterable(training_epochs(job, options))
        self.pending = list(islice(self._batches, 1))  # the next batch; empty at the end
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.sizes: list[int] = []

    def next_batch(self) -> tuple[Tensor, Tensor]:
        batch = self.pending.pop()
        self.pending += islice(self._batches, 1)
        self.remaining -= 1
        self.sizes.append(len(batch[1]))
        return batch


class Cohort:
    """Several clients that train together. Their models change only at the end of training."""

    def __init__(self, jobs: Sequence[TrainingJob], options: TrainOptions) -> None:
        self._options = options
        models = [job.model.train() for job in jobs]
        if reason := next(filter(None, map(find_obstacle, models)), None):
            raise IncompatibleError(reason)
        self._layouts = build_layouts(models)
        states = [dict(model.named_parameters()) for model in models]
        with torch.no_grad():
            values = [torch.cat([layout.rows(state[layout.name], 1) for state in states]) for layout in self._layouts]
        trained = sum(layout.trained for layout in self._layouts)
        self._sgd = SGD(values, options, trained=trained, by_row=True, quadratic=self._join_quadratics(jobs))
        self._clients = [_Client(job, options) for job in jobs]
        self._longest = max(steps_per_epoch(job.split, options.batch_size) for job in jobs)
        self._joints: dict[int, Joint] = {}
        self._present: Tensor | None = None
        self._replayed: Replayed | None = None

    def _join_quadratics(self, jobs: Sequence[TrainingJob]) -> AlignedQuadratic | None:
        quadratics = [job.quadratic for job in jobs if job.quadratic is not None]
        if not quadratics:
            return None
        kinds = {(form.strength, len(form.centers), len(form.directions)) for form in quadratics}
        if len(quadratics) < len(jobs) or len(kinds) > 1:
            raise IncompatibleError("the clients' penalties differ")
        parameters = dict(jobs[0].model.named_parameters())
        places = {name: place for place, name in enumerate(parameters)}

        def rows(layout: Layout, tensors: Iterable[Sequence[Tensor]]) -> Tensor:
            place, like = places[layout.name], parameters[layout.name].detach()
            return torch.cat([layout.rows(torch.empty_like(like).copy_(client[place]), 1) for client in tensors])

        trained = [layout for layout in self._layouts if layout.trained]
        return AlignedQuadratic(
            quadratics[0].strength,
            [rows(layout, [form.centers for form in quadratics]) for layout in trained if quadratics[0].centers],
            [rows(layout, [form.directions for form in quadratics]) for layout in trained if quadratics[0].directions],
        )

    def train(self) -> list[TrainResult]:
        """Train all clients, then write the parameters into their models."""
        try:
            while together := self._next():
                self._run_steps(together)
        finally:
            self._replayed = None  # breaks a reference cycle, which would keep a GPU's memory for a while
        for joint in self._joints.values():
            joint.give_back()
        return [self._finish(number) for number in range(len(self._clients))]

    def _next(self) -> list[int]:
        """Return the numbers of the clients that run the next steps together; [] after the last step.

        These are the client with the most remaining steps, and all clients whose next batch has the same shape.
        """
        shapes = {number: client.pending[0][0].shape for number, client in enumerate(self._clients) if client.pending}
        if not shapes:
            return []
        leading = shapes[max(shapes, key=lambda number: self._clients[number].remaining)]
        return [number for number, shape in shapes.items() if shape == leading]

    def _run_steps(self, together: list[int]) -> None:
        rows = torch.tensor(together, device=self._sgd.values[0].device)
        all_of_them = len(together) == len(self._clients)
        sgd = self._sgd if all_of_them else self._sgd.select(rows)
        joint = self._prepare(together, sgd.values)
        compute: Compute = partial(self._compute, joint, sgd, rows)
        if rows.is_cuda and all_of_them:  # this group recurs in every epoch, with the same memory
            compute = self._replayed = self._replayed or Replayed(compute, torch.cuda.Stream(rows.device))
        elif rows.is_cuda:
            compute = Replayed(compute, torch.cuda.Stream(rows.device))
        steps: list[tuple[Tensor, ...]] = []
        while len(steps) < self._longest and self._next() == together:
            steps.append(self._step(compute, together))
        if isinstance(compute, Replayed) and compute.obstacle:
            kind = type(self._clients[0].job.model).__name__
            log_once(f"steps of clients with a {kind} cannot be replayed, so they are slower: {compute.obstacle}")
        joint.release()  # there may be a joint model for each number of clients
        if not all_of_them:
            self._sgd.write(rows, sgd)
        losses, correct = (torch.stack(parts) for parts in zip(*steps, strict=True))  # (steps, clients)
        diverged = [number for number, loss in zip(together, losses.T, strict=True) if not loss.isfinite().all()]
        if diverged:
            raise DivergedError(
                f"the loss is no longer finite for {len(diverged)} of {len(self._clients)} clients that train "
                f"together, the first being number {diverged[0] + 1}, at learning rate {self._options.learning_rate:g}"
            )
        for place, number in enumerate(together):
            self._clients[number].losses.append(losses[:, place])
            self._clients[number].correct.append(correct[:, place].sum())

    def _prepare(self, together: list[int], values: Sequence[Tensor]) -> Joint:
        number, clients = len(together), [self._clients[client] for client in together]
        if number not in self._joints:
            models, inputs = [client.job.model for client in clients], [client.pending[0][0] for client in clients]
            self._joints[number] = take_verified(models, self._layouts, values, inputs)
        self._joints[number].place(values)
        return self._joints[number]

    def _step(self, compute: Compute, together: list[int]) -> tuple[Tensor, ...]:
        inputs, targets = zip(*(self._clients[number].next_batch() for number in together), strict=True)
        return compute(torch.cat(inputs, 1), torch.stack(targets, 1))  # (batch, clients * channels, ...)

    def _compute(self, joint: Joint, sgd: SGD, rows: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        logits = self._mask(joint.forward(inputs).float(), rows)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets).mean(0)
        sgd.step(joint.gradients(losses.sum()))
        return losses.detach(), (logits.detach().argmax(2) == targets).sum(0)

    def _mask(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Return ``logits`` in which ``mask_fill`` replaces the logits of each client's absent classes.

        ``logits`` has the shape (batch, clients, classes). ``rows`` are the clients' indices in the cohort.
        """
        classes = [client.job.classes for client in self._clients]
        if all(labels is None for labels in classes):
            return logits
        if self._present is None:
            number = logits.shape[2]
            masks = [class_mask(range(number) if labels is None else labels, number).cpu() for labels in classes]
            self._present = torch.stack(masks).to(logits.device)  # (clients, classes)
        present = self._present if len(rows) == len(classes) else self._present[rows]
        return mask_logits(logits.flatten(1), present.flatten(), self._options.mask_fill).view_as(logits)

    @torch.no_grad()
    def _finish(self, number: int) -> TrainResult:
        client = self._clients[number]
        parameters = dict(client.job.model.named_parameters())
        for layout, rows in zip(self._layouts, self._sgd.values, strict=True):
            if layout.trained:
                parameters[layout.name].copy_(layout.shaped(rows[number], layout.shape))
        client.job.model.zero_grad()
        return build_result(client.job, client.losses, client.sizes, int(torch.stack(client.correct).sum()))
