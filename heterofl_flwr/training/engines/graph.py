"""The engine ``graph``: each training step is one launch of a CUDA graph, recorded once for each model."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from heterofl_flwr.core.randomness import derive
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.nn.execution import device_of
from heterofl_flwr.training.device import seeded, tensor_specs
from heterofl_flwr.training.engines.plain import log_once, run_epochs, train_plain
from heterofl_flwr.training.options import TrainingJob, TrainOptions, TrainResult
from heterofl_flwr.training.step import Masking, ParameterSGD, compute_loss

WARM_UP = 3
"""Steps with each shape of batch before it is recorded: torch and its libraries set themselves up in them."""

MOST_SHAPES = 32
"""Shapes of batches that are recorded for one model; further ones run as they are."""

_CAPTURE_LOCK = threading.Lock()  # torch captures one graph at a time in a process


class UncapturableError(HeteroFLError):
    """A training step does what a CUDA graph cannot hold."""


class CudaRecorder:
    """Records CUDA graphs: on a stream of their own, as torch requires, and in one pool of memory.

    The graphs of a pool may be replayed in any order, because a step leaves nothing in it for the next one.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ConfigError(
                f"engine is graph, and the model is on {device}: CUDA graphs exist on a CUDA device alone; use engine "
                "auto or plain"
            )
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Compute on the stream, after all that was queued before, and before all that is queued after."""
        outer = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outer.wait_stream(self._stream)

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """Capture a step that has run before and uses only tensors that stay where they are; return its replay."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may train other models meanwhile, which must not break this capture.
        capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        first: Exception | None = None
        try:
            with _CAPTURE_LOCK, capture:
                try:
                    step()
                except Exception as error:
                    first = error  # the end of a broken capture fails once more, and says less
                    raise
        except RuntimeError as error:
            cause = first or error
            if isinstance(cause, torch.OutOfMemoryError) or not isinstance(cause, RuntimeError):
                raise cause from None
            raise UncapturableError(str(cause).strip().partition("\n")[0]) from cause
        return graph.replay


class StaticStep:
    """A training step of one model in tensors that stay where they are, for one client after the other.

    While a client trains, its model's parameters and buffers live in tensors of this object. All that differs between
    clients and rounds is in such tensors too: momentum, received parameters, class mask and learning rate. The first
    steps with each shape of batch run as they are and count like all others; so do those of shapes that are rare. The
    other options are constants of the recording.
    """

    _model: nn.Module
    """There while a client trains, so that nothing here keeps a model alive."""

    def __init__(self, model: nn.Module, options: TrainOptions, recorder: CudaRecorder) -> None:
        self._recorder, self._parameters = recorder, list(model.parameters())
        self._constants = _constants(model, options)
        self._precision = options.precision
        self._seen: Counter[object] = Counter()
        self._recordings: dict[object, tuple[Tensor, Tensor, Callable[[], None]]] = {}
        self._masking = Masking(None, options.mask_fill, static=True)
        device = device_of(model)
        with recorder.place():
            self._static = [tensor.detach().clone() for tensor in _tensors(model).values()]
            self._learning_rate = torch.zeros((), device=device)
            self._loss = torch.zeros((), device=device)
            self.correct = torch.zeros((), dtype=torch.int64, device=device)
            with _placed_in(model, self._static):
                self._sgd = ParameterSGD(self._parameters, options, self._learning_rate)

    def fits(self, model: nn.Module, options: TrainOptions) -> bool:
        """Return whether a model, in training mode, is still what it was, and the options' constants too."""
        same = list(map(id, self._parameters)) == list(map(id, model.parameters()))
        return same and self._constants == _constants(model, options)

    @contextmanager
    def client(self, job: TrainingJob, options: TrainOptions) -> Iterator[None]:
        """Run a client's steps in this context; after an error the model is as it was received."""
        with self._recorder.place(), _placed_in(job.model, self._static):
            self._model = job.model
            try:
                self._masking.set_classes(job.classes)
                self._learning_rate.fill_(options.learning_rate)
                self.correct.zero_()
                self._sgd.restart()
                yield
            finally:
                del self._model
                job.model.zero_grad()  # frees the gradients

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Run one step; return its loss."""
        shape = (inputs.shape, inputs.dtype)
        self._seen[shape] += 1
        if shape not in self._recordings and self._seen[shape] > WARM_UP and len(self._recordings) < MOST_SHAPES:
            batch = inputs.clone(), targets.clone()
            self._recordings[shape] = *batch, self._recorder.record(partial(self._step, *batch))
        if shape in self._recordings:
            own_inputs, own_targets, replay = self._recordings[shape]
            own_inputs.copy_(inputs)
            own_targets.copy_(targets)
            replay()
        else:
            self._step(inputs, targets)
        return self._loss.clone()

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        loss, right = compute_loss(self._model, inputs, targets, self._masking, self._precision)
        self._sgd.minimise(loss)
        with torch.no_grad():
            self._loss.copy_(loss)
            self.correct += right.sum()


def _constants(model: nn.Module, options: TrainOptions) -> object:
    """Return what a recording fixes of a model and of the options."""
    fixed = replace(options, learning_rate=1.0, epochs=1, batch_size=1, augment="none")
    return fixed, tensor_specs(model), [module.training for module in model.modules()]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@contextmanager
def _placed_in(model: nn.Module, static: Sequence[Tensor]) -> Iterator[None]:
    """Hold a model's values in these tensors for a while; after an error they are again what they were before."""
    tensors = _tensors(model)

    def replaced() -> list[str]:
        now = _tensors(model)
        return [name for name, tensor in tensors.items() if now.get(name) is not tensor]

    own = [tensor.data for tensor in tensors.values()]
    for tensor, value, place in zip(tensors.values(), own, static, strict=True):
        tensor.data = place.copy_(value)
    try:
        yield
        if names := replaced():
            raise UncapturableError(f"{', '.join(names[:3])} became another tensor instead of changing in place")
        for value, place in zip(own, static, strict=True):
            value.copy_(place)
    finally:
        for name in replaced():
            layer, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(layer), attribute, tensors[name])
        for tensor, value in zip(tensors.values(), own, strict=True):
            tensor.data = value


_STEPS: WeakKeyDictionary[nn.Module, StaticStep] = WeakKeyDictionary()
_UNCAPTURABLE: WeakSet[nn.Module] = WeakSet()


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
    return [_train(job, options) for job in jobs]


def _train(job: TrainingJob, options: TrainOptions) -> TrainResult:
    started, model = perf_counter(), job.model.train()
    if model in _UNCAPTURABLE:
        return train_plain([job], options)[0]
    step = _STEPS.pop(model, None)  # it comes back only after success: nobody knows its state after an error
    if step is not None and not step.fits(model, options):
        step = None  # its memory is free for the next one
    step = step or StaticStep(model, options, CudaRecorder(device_of(model)))
    try:
        with seeded(derive(job.seed, "model"), job.split.targets.device), step.client(job, options):
            result = run_epochs(job, options, step, step.correct, started)
    except UncapturableError as error:
        _UNCAPTURABLE.add(model)
        kind = type(model).__name__
        reason = f"a training step of a {kind} cannot be a CUDA graph, so engine plain trains it: {error}"
        log_once(logging.WARNING, reason)
        return train_plain([job], options)[0]
    _STEPS[model] = step
    return result
