"""The engine ``graph``: each training step is one launch of a CUDA graph, recorded once for each model."""

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from time import perf_counter
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from heterofl_flwr.core.randomness import derive
from heterofl_flwr.nn.layers import OrderedDropout
from heterofl_flwr.training.batches import epochs_of
from heterofl_flwr.training.device import device_of, seeded
from heterofl_flwr.training.engines.cuda_graph import CudaRecorder, Recorder, UncapturableError
from heterofl_flwr.training.engines.plain import check_examples, check_finite, result_of, train_plain
from heterofl_flwr.training.engines.static_step import StaticStep
from heterofl_flwr.training.options import TrainingJob, TrainOptions, TrainResult

_log = logging.getLogger(__name__)


class GraphEngine:
    """Trains clients with recorded steps, which it keeps as long as their model lives.

    Parameters
    ----------
    recorder : Callable[[torch.device], Recorder]
        Makes what records the steps of a model on a device.
    """

    def __init__(self, recorder: Callable[[torch.device], Recorder]) -> None:
        self._recorder = recorder
        self._steps: WeakKeyDictionary[nn.Module, StaticStep] = WeakKeyDictionary()
        self._unfit: WeakSet[nn.Module] = WeakSet()

    def train(self, job: TrainingJob, options: TrainOptions) -> TrainResult:
        """Train one client's model in place."""
        check_examples(job)
        # Its draws choose what is computed, which a recording would fix.
        if job.model not in self._unfit and not isinstance(job.model, OrderedDropout):
            try:
                return self._train(job, options)
            except UncapturableError as error:
                self._unfit.add(job.model)
                _tell(type(job.model).__name__, str(error))
        return train_plain([job], options)[0]

    def _train(self, job: TrainingJob, options: TrainOptions) -> TrainResult:
        started = perf_counter()
        job.model.train()
        step = self._step_of(job.model, options)
        try:
            with seeded(derive(job.seed, "model"), job.split.targets.device), step.client(job, options):
                losses, sizes, correct = _run(step, job, options)
        except BaseException:
            self._steps.pop(job.model, None)  # nobody knows what state a recording is in
            raise
        return result_of(job, losses, sizes, correct, perf_counter() - started)

    def _step_of(self, model: nn.Module, options: TrainOptions) -> StaticStep:
        step = self._steps.get(model)
        if step is None or not step.fits(model, options):
            self._steps.pop(model, None)  # its memory is free for the next one
            step = self._steps[model] = StaticStep(model, options, self._recorder(device_of(model)))
        return step


def _run(step: StaticStep, job: TrainingJob, options: TrainOptions) -> tuple[list[Tensor], list[int], int]:
    """Return the losses of all steps, the number of examples of each, and the number of right answers."""
    all_losses: list[Tensor] = []
    sizes: list[int] = []
    for batches in epochs_of(job, options):
        losses = []
        for inputs, targets in batches:
            losses.append(step.take(inputs, targets))
            sizes.append(targets.numel())
        all_losses.append(torch.stack(losses))
        check_finite(all_losses, options)  # once an epoch: reading a value waits for the GPU
    return all_losses, sizes, step.correct


@lru_cache(maxsize=256)
def _tell(model: str, reason: str) -> None:
    """Say, once, why steps of a model are not recorded."""
    _log.warning("a training step of a %s cannot be a CUDA graph, so engine plain trains it: %s", model, reason)


_ENGINE = GraphEngine(CudaRecorder)


def train_graph(jobs: Sequence[TrainingJob], options: TrainOptions) -> list[TrainResult]:
    """Train clients one after the other, each step one launch of a CUDA graph instead of hundreds of kernels.

    A graph is recorded once for each module and shape of batch, and serves all clients and rounds of the process that
    train this module; draws, such as those of dropout, are those of ``plain``. Buffers that change in training, such
    as running statistics, are treated like parameters. What a model computes from anything but its tensors is fixed
    when it is recorded: settings of torch, and attributes such as ``Dropout.p``. A model that reads values of tensors,
    moves them between devices or replaces its buffers is trained by ``plain``; a log entry says why. After an error a
    model is as it was received.

    Raises
    ------
    ConfigError
        If a model is not on a CUDA device.
    DivergedError
        If a loss is NaN or infinite.
    """
    return [_ENGINE.train(job, options) for job in jobs]
