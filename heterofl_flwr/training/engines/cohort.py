"""What in a model, seen without running it, keeps clients from training together."""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain, islice
from time import perf_counter
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from heterofl_flwr.nn.layers import OrderedDropout
from heterofl_flwr.training.batches import epochs_of, steps_an_epoch, steps_of
from heterofl_flwr.training.device import device_of, seeded
from heterofl_flwr.training.engines.joint import Joint, Stack, Vmapped, Wide, layouts_of
from heterofl_flwr.training.engines.plain import DivergedError, check_examples, result_of, train_plain
from heterofl_flwr.training.engines.verify import prove
from heterofl_flwr.training.losses import Losses
from heterofl_flwr.training.options import TrainingJob, TrainOptions, TrainResult, UnfitError

_LAYER_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def obstacle(model: nn.Module) -> str | None:
    """Return why clients with such a model cannot train together, each as if it were alone; None if nothing shows."""
    for name, layer in model.named_modules():
        what = f"layer {name or '(the model itself)'}"
        if any(getattr(layer, hooks, None) for hooks in _LAYER_HOOKS):
            return f"a hook watches {what}"
        if isinstance(layer, OrderedDropout) or (isinstance(layer, _DropoutNd) and layer.p):
            return f"{what} draws random numbers"
        if isinstance(layer, _NormBase) and layer.running_mean is not None:
            return f"{what} changes its running statistics"
    for name, parameter in model.named_parameters():
        if any(getattr(parameter, hooks, None) for hooks in _PARAMETER_HOOKS):
            return f"a hook watches parameter {name}"
    return None


class Together:
    """The training of several clients in one way; until it is done their models keep what they received.

    Parameters
    ----------
    jobs : Sequence[TrainingJob]
        The clients.
    options : TrainOptions
        Learning rate, epochs and so on.
    way : type[Joint]
        How they are computed together.
    """

    def __init__(self, jobs: Sequence[TrainingJob], options: TrainOptions, way: type[Joint]) -> None:
        self._started = perf_counter()
        self._works, self._options, self._way = jobs, options, way
        models = [job.model.train() for job in jobs]
        if len(set(map(id, models))) < len(models):
            raise UnfitError("two clients have the same model")
        if reason := next(filter(None, map(obstacle, models)), None):
            raise UnfitError(reason)
        self._layouts = layouts_of(models, channels_last=way.channels_last)
        self._stack = Stack.of(models, self._layouts, options)
        self._losses = Losses([job.classes for job in jobs], options.mask_fill)
        self._clients = [_Client(job, options) for job in jobs]
        self._longest = max(steps_an_epoch(job.split, options.batch_size) for job in jobs)
        self._joints: dict[int, Joint] = {}

    def train(self) -> list[TrainResult | None]:
        """Train the clients and write their models; None for one that diverged, whose model stays as it was."""
        while together := self._next():
            self._take_steps(together)
        seconds = (perf_counter() - self._started) / sum(len(client.sizes) for client in self._clients)
        whole = {number for number in range(len(self._clients)) if self._is_whole(number)}
        return [self._finish(number, seconds) if number in whole else None for number in range(len(self._clients))]

    def _next(self) -> list[int]:
        """Return who steps next: the client with most steps to go, and all whose batches have the shape of its own.

        So one that takes an odd last batch is soon with the others again.
        """
        shapes = {number: client.ahead[0][0].shape for number, client in enumerate(self._clients) if client.ahead}
        if not shapes:
            return []
        first = shapes[max(shapes, key=lambda number: self._clients[number].left)]
        return [number for number, shape in shapes.items() if shape == first]

    def _take_steps(self, together: list[int]) -> None:
        """Take steps as long as these clients go together, at most an epoch; then see which of them has diverged."""
        all_of_them = len(together) == len(self._clients)
        stack = self._stack if all_of_them else self._stack.part(together)
        joint = self._joint(together, stack)
        steps: list[tuple[Tensor, Tensor]] = []
        while len(steps) < self._longest and self._next() == together:
            steps.append(self._step(joint, stack, together))
        if not all_of_them:
            self._stack.put(together, stack)
        losses, right = (torch.stack(parts) for parts in zip(*steps, strict=True))  # (steps, clients)
        finite = losses.isfinite().all(0).tolist()
        for place, number in enumerate(together):
            self._clients[number].note(losses[:, place], right[:, place].sum(), finite[place])

    def _joint(self, together: list[int], stack: Stack) -> Joint:
        """Return what computes these clients, proved when it is new."""
        number = len(together)
        if number not in self._joints:
            models = [self._works[client].model for client in together]
            inputs = [self._clients[client].ahead[0][0] for client in together]
            self._joints[number] = prove(self._way, models, self._layouts, stack, inputs)
        self._joints[number].place(stack)
        return self._joints[number]

    def _step(self, joint: Joint, stack: Stack, together: list[int]) -> tuple[Tensor, Tensor]:
        """Take one step; return the losses and the numbers of right answers."""
        inputs, targets = zip(*(self._clients[number].take() for number in together), strict=True)
        logits = joint(inputs, self._options.precision).float()
        losses, right = self._losses(logits, torch.stack(targets, 1), together)
        stack.descend(joint.gradients(losses.sum()), self._options)
        return losses.detach(), right

    def _is_whole(self, number: int) -> bool:
        """Return whether a client has come to its end.

        Some kernels multiply others' values by zero, which lets through NaN, and NaN alone, of one that diverged.
        """
        if not any(client.diverged for client in self._clients):
            return True
        finite = all(bool(rows[number].isfinite().all()) for rows in self._stack.values)
        return finite and not self._clients[number].diverged

    @torch.no_grad()
    def _finish(self, number: int, seconds: float) -> TrainResult:
        """Write a client's model and return its result; ``seconds`` are those of one step of one client."""
        client, job = self._clients[number], self._works[number]
        parameters = dict(job.model.named_parameters())
        for layout, rows in zip(self._layouts, self._stack.values, strict=True):
            if layout.trained:
                parameters[layout.name].copy_(layout.shaped(rows[number], layout.shape))
        job.model.zero_grad()
        correct = int(torch.stack(client.right).sum())
        return result_of(job, client.losses, client.sizes, correct, seconds * len(client.sizes))


class _Client:
    """One client's way through its batches, and what came of them."""

    def __init__(self, job: TrainingJob, options: TrainOptions) -> None:
        self.left = steps_of(job, options)
        self._batches = chain.from_iterable(epochs_of(job, options))
        self.ahead = list(islice(self._batches, 1))  # the next batch; none at the end
        self.losses: list[Tensor] = []
        self.right: list[Tensor] = []
        self.sizes: list[int] = []
        self.diverged = False

    def take(self) -> tuple[Tensor, Tensor]:
        """Return the next batch and go on."""
        batch = self.ahead.pop()
        self.ahead += islice(self._batches, 1)
        self.left -= 1
        self.sizes.append(len(batch[1]))
        return batch

    def note(self, losses: Tensor, right: Tensor, finite: bool) -> None:
        """Note what came of some steps; a loss that is not finite ends this client's way."""
        self.losses.append(losses)
        self.right.append(right)
        if not finite:
            self.diverged = True
            self.ahead.clear()


_log = logging.getLogger(__name__)

WAYS: Mapping[str, Sequence[type[Joint]]] = MappingProxyType({"cpu": (Wide,), "cuda": (Wide, Vmapped)})
"""Ways to compute clients together by type of device, the better first; on a CPU ``Vmapped`` gains too little."""


class CohortDivergedError(DivergedError):
    """Some clients of a cohort diverged; the others are trained.

    Attributes
    ----------
    outcomes
        For each client, in order, its result or its error.
    """

    def __init__(self, outcomes: Sequence[TrainResult | DivergedError]) -> None:
        super().__init__(outcomes)
        self.outcomes = tuple(outcomes)

    def __str__(self) -> str:
        """Return what each error says, with the client's place."""
        number = len(self.outcomes)
        return "; ".join(
            f"client {place} of {number}: {outcome}"
            for place, outcome in enumerate(self.outcomes, 1)
            if isinstance(outcome, DivergedError)
        )


def train_cohort(jobs: Sequence[TrainingJob], options: TrainOptions) -> list[TrainResult]:
    """Train clients together; equal to ``plain`` up to rounding.

    Clients stay independent: each has its own batches, classes and clipping, and they need not have equally many
    examples. Before models are computed together it is proved, on a batch, that each gets what it gets alone. Where
    that fails, or anything else does, the models are still as they were received and are trained by ``plain``; a log
    entry says why. So are models with active dropout, models whose buffers change in training (batch norm with running
    statistics), and models with hooks.

    Raises
    ------
    CohortDivergedError
        If a loss is NaN or infinite. The other clients are trained.
    """
    for job in jobs:
        check_examples(job)
    if len(jobs) < 2:
        return train_plain(jobs, options)
    outcomes = [
        result or _train_alone(job, options) for job, result in zip(jobs, _train_together(jobs, options), strict=True)
    ]
    results = [outcome for outcome in outcomes if isinstance(outcome, TrainResult)]
    if len(results) < len(outcomes):
        raise CohortDivergedError(outcomes)
    return results


def _train_together(jobs: Sequence[TrainingJob], options: TrainOptions) -> list[TrainResult | None]:
    """Train clients in the first way that fits; None for those that are left as they were."""
    device = device_of(jobs[0].model)
    for way in WAYS.get(device.type, ()):
        try:
            with seeded(0, device):
                return Together(jobs, options, way).train()
        except Exception as error:  # alone the clients either meet it too, and say it as plain does, or they do not
            _tell(type(jobs[0].model).__name__, way.__name__.lower(), f"{type(error).__name__}: {error}")
    return [None] * len(jobs)


def _train_alone(job: TrainingJob, options: TrainOptions) -> TrainResult | DivergedError:
    try:
        return train_plain([job], options)[0]
    except DivergedError as error:
        return error


@lru_cache(maxsize=256)
def _tell(model: str, way: str, reason: str) -> None:
    """Say, once, why models are not trained together."""
    _log.info("clients with a %s cannot train together (%s): %s", model, way, reason)
