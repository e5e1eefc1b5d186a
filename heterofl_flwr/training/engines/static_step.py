"""The training step of one model in tensors that stay where they are, so that it can be recorded."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from heterofl_flwr.nn.loss import Fill, class_mask, mask_logits, masked_cross_entropy
from heterofl_flwr.training.device import device_of, lowered
from heterofl_flwr.training.engines.cuda_graph import Recorder, Replay, UncapturableError
from heterofl_flwr.training.engines.sgd import Descent
from heterofl_flwr.training.options import TrainingJob, TrainOptions

WARM_UP = 3
"""Steps with each shape of batch before it is recorded: torch and its libraries set themselves up in them."""

MOST_SHAPES = 32
"""Shapes of batches that are recorded for one model; further ones run as they are."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """A recorded shape of batch: where the batch goes, and what then computes."""

    inputs: Tensor
    targets: Tensor
    replay: Replay


class StaticStep:
    """Forward, mask, loss, backward and descent of a model, for one client after the other.

    While a client trains, its model's parameters and buffers live in tensors of this object. All that differs between
    clients and rounds is in such tensors too: momentum, received parameters, class mask and learning rate. The first
    steps with each shape of batch run as they are and count like all others; so do those of shapes that are rare.

    Parameters
    ----------
    model : nn.Module
        The model, on its device and in training mode; it is not kept.
    options : TrainOptions
        How it trains; all but learning rate, epochs, batch size and augmentation are constants of the recording.
    recorder : Recorder
        Records the step.
    """

    _model: nn.Module
    """There while a client trains, so that nothing here keeps a model alive."""

    def __init__(self, model: nn.Module, options: TrainOptions, recorder: Recorder) -> None:
        self._options, self._recorder = _constants(options), recorder
        self._form = _form(model)
        self._parameters = list(model.parameters())
        self._seen: Counter[object] = Counter()
        self._recordings: dict[object, _Recording] = {}
        self._masking = _StaticMasking(options.mask_fill)
        device = device_of(model)
        with recorder.place():
            self._homes = [tensor.detach().clone() for tensor in _tensors(model).values()]
            self._learning_rate = torch.zeros((), device=device)
            self._loss = torch.zeros((), device=device)
            self._correct = torch.zeros((), dtype=torch.int64, device=device)
            with _living_in(model, self._homes):
                self._descent = Descent(self._parameters, options, self._learning_rate)

    def fits(self, model: nn.Module, options: TrainOptions) -> bool:
        """Return whether a model, in training mode, is still what it was, and the options' constants too."""
        own = self._parameters, list(model.parameters())
        same = len(own[0]) == len(own[1]) and all(one is other for one, other in zip(*own, strict=True))
        return same and self._options == _constants(options) and self._form == _form(model)

    @contextmanager
    def client(self, job: TrainingJob, options: TrainOptions) -> Iterator[None]:
        """Take steps for a client in this context; after an error the model is as it was received."""
        with self._recorder.place(), _living_in(job.model, self._homes):
            self._model = job.model
            try:
                self._masking.choose(job.classes)
                self._learning_rate.fill_(options.learning_rate)
                self._correct.zero_()
                self._descent.restart()
                yield
            finally:
                del self._model
                job.model.zero_grad()  # frees the gradients

    def take(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Take one step; return its loss."""
        recording = self._recording(inputs, targets)
        if recording is None:
            self._step(inputs, targets)
        else:
            recording.inputs.copy_(inputs)
            recording.targets.copy_(targets)
            recording.replay()
        return self._loss.clone()

    @property
    def correct(self) -> int:
        """How many answers of the client's steps were right; reading it waits for the GPU."""
        return int(self._correct)

    def _recording(self, inputs: Tensor, targets: Tensor) -> _Recording | None:
        shape = (inputs.shape, inputs.dtype)
        self._seen[shape] += 1
        if shape not in self._recordings and self._seen[shape] > WARM_UP and len(self._recordings) < MOST_SHAPES:
            homes = inputs.clone(), targets.clone()
            self._recordings[shape] = _Recording(*homes, self._recorder.record(partial(self._step, *homes)))
        return self._recordings.get(shape)

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        with lowered(self._options.precision, targets.device):
            logits = self._model(inputs)
        logits = self._masking(logits.float())
        loss = masked_cross_entropy(logits, targets)
        self._descent.take(loss)
        with torch.no_grad():
            self._loss.copy_(loss)
            self._correct += (logits.argmax(1) == targets).sum()


class _StaticMasking:
    """The mask of a client's classes, in a tensor that is made for the first logits and then stays."""

    def __init__(self, fill: Fill) -> None:
        self._fill = fill
        self._classes: Sequence[int] | Tensor | None = None
        self._mask: Tensor | None = None

    def choose(self, classes: Sequence[int] | Tensor | None) -> None:
        """Take the next client's classes; None for all."""
        self._classes = classes
        if self._mask is not None:
            self._mask.copy_(self._chosen(len(self._mask)))

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the logits with those of absent classes filled."""
        if self._mask is None:
            self._mask = self._chosen(logits.shape[1]).to(logits.device)
        return mask_logits(logits, self._mask, self._fill)

    def _chosen(self, number: int) -> Tensor:
        if self._classes is None:
            return torch.ones(number, dtype=torch.bool)
        return class_mask(torch.as_tensor(self._classes), number)


def _constants(options: TrainOptions) -> TrainOptions:
    """Return the options with what a recording does not hold set to the same values."""
    return replace(options, learning_rate=1.0, epochs=1, batch_size=1, augment="none")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _form(model: nn.Module) -> object:
    """Return what a recording takes from a model besides the values of its tensors."""
    tensors = [
        (name, tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
        for name, tensor in _tensors(model).items()
    ]
    return tensors, [module.training for module in model.modules()]


@contextmanager
def _living_in(model: nn.Module, homes: Sequence[Tensor]) -> Iterator[None]:
    """Hold a model's values in these tensors for a while; after an error they are again what they were before."""
    tensors = _tensors(model)
    own = [tensor.data for tensor in tensors.values()]
    for tensor, value, home in zip(tensors.values(), own, homes, strict=True):
        tensor.data = home.copy_(value)
    try:
        yield
        if replaced := _replaced(model, tensors):
            raise UncapturableError(f"{', '.join(replaced[:3])} became another tensor instead of changing in place")
        for value, home in zip(own, homes, strict=True):
            value.copy_(home)
    finally:
        for name in _replaced(model, tensors):
            layer, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(layer), attribute, tensors[name])
        for tensor, value in zip(tensors.values(), own, strict=True):
            tensor.data = value


def _replaced(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    now = _tensors(model)
    return [name for name, tensor in tensors.items() if now.get(name) is not tensor]
