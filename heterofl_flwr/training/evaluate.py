"""Evaluation of a model on examples."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.nn.execution import device_of, evaluating, to_double
from heterofl_flwr.nn.loss import Fill, class_mask, flatten_positions, mask_logits, masked_cross_entropy, perplexity
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.memory_format import in_channels_last
from heterofl_flwr.nn.present_classes import MANY, PresentClasses, predict
from heterofl_flwr.training.batches import batch_rows, explained_single, read_tokens
from heterofl_flwr.training.options import EvaluateResult

LOGITS = 2**22
"""Number of logits of a text that a CPU computes at once."""


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    classes: Sequence[int] | Tensor | None = None,
    fill: Fill = "zero",
    batch_size: int = 100,
    seed: int = 0,
    perplexity_kind: Variant = "paper",
) -> EvaluateResult:
    """Evaluate a model in torch's evaluation mode; return loss, accuracy and other results.

    Batch norm layers without running statistics normalise by batch even in evaluation mode. To avoid this, measure
    moments of the data and evaluate ``heterofl_flwr.nn.with_static_norm(model, moments)``.

    Parameters
    ----------
    model : nn.Module
        Module from a batch of inputs to logits with classes on axis 1.
    split : Split
        The examples, possibly none. Examples on another device are moved to the model's device.
    classes : Sequence[int] | Tensor | None
        The classes that are present, None for all. The logits of other classes are replaced.
    fill : Fill
        Replacement for the logits of absent classes: ``zero``, ``-inf``, or ``none`` to keep them (``nn.mask_logits``).
    batch_size : int
        Number of examples in a batch, or of rows of text.
    seed : int
        Random seed for the choice of masked words in a text.
    perplexity_kind : Variant
        Variant of the perplexity of a text; see ``heterofl_flwr.nn.perplexity``.
    """
    maskings = [(classes, fill)]
    return evaluate_each(model, split, maskings, batch_size=batch_size, seed=seed, perplexity_kind=perplexity_kind)[0]


def evaluate_each(
    model: nn.Module,
    split: Split,
    maskings: Sequence[tuple[Sequence[int] | Tensor | None, Fill]],
    *,
    batch_size: int = 100,
    seed: int = 0,
    perplexity_kind: Variant = "paper",
) -> list[EvaluateResult]:
    """Return the result of ``evaluate`` for each pair (classes, fill), from one pass over the data."""
    if not len(split):
        return [EvaluateResult(0, 0.0, 0) for _ in maskings]
    split = split.to(device_of(model))
    pieces = partial(_pieces, split, batch_size, seed, _count_rows(model, split))
    with explained_single(), evaluating(model):
        numbers, sizes, every = in_channels_last(model, partial(_score, model, pieces, maskings))
    batches, weights = torch.tensor(numbers), torch.tensor(sizes, dtype=torch.float64)
    counts = _sum_by(batches, weights)
    results = []
    for scores in every:
        values = _sum_by(batches, to_double(torch.stack(scores.losses)).cpu() * weights) / counts
        loss = sum((values * counts).tolist()) / sum(sizes)
        text = None if split.reading is None else perplexity(values.tolist(), counts.tolist(), perplexity_kind)
        results.append(EvaluateResult(sum(sizes), loss, int(torch.stack(scores.correct).sum()), text))
    return results


def _count_rows(model: nn.Module, split: Split) -> int:
    """Return the maximum number of rows for one forward pass.

    For the logits of few rows of a text, a CPU's cache is large enough. Batch norm may depend on all rows of a batch.
    """
    reading = split.reading
    if reading is None or device_of(model).type != "cpu" or batch_norms(model):
        return len(split)
    words = max(reading.hides_as, 1)  # of a text that ``load_dataset`` returns
    return max(LOGITS // (words * reading.length), 1)


def _sum_by(groups: Tensor, values: Tensor) -> Tensor:
    """Return the sum of the values of each group; groups are numbered from 0."""
    return torch.zeros(int(groups.max()) + 1, dtype=values.dtype).index_add_(0, groups, values)


def _pieces(split: Split, batch_size: int, seed: int, most: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the number of the batch, inputs and targets of pieces of batches, each of at most ``most`` rows."""
    for number, (inputs, targets) in enumerate(_batches(split, batch_size, seed)):
        for piece, wanted in zip(inputs.split(most), targets.split(most), strict=True):
            yield number, piece, wanted


def _batches(split: Split, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets of batches; for a text, of pieces of ``batch_size`` rows."""
    if split.reading is None:
        sizes = [len(rows) for rows in batch_rows(torch.arange(len(split)), batch_size)]
        yield from zip(split.inputs.split(sizes), split.targets.split(sizes), strict=True)
        return
    generator = torch.Generator().manual_seed(derive(seed, "hidden"))
    for rows in split.inputs.split(batch_size):
        yield from read_tokens(rows, split.reading, generator)


class _Scores:
    """Mean losses and numbers of correct predictions of pieces, with the logits of absent classes replaced."""

    def __init__(self, classes: Sequence[int] | Tensor | None, fill: Fill) -> None:
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self._classes, self._fill = classes, fill
        self._present: Tensor | None = None
        self._few: PresentClasses | None = None

    def add(self, logits: Tensor, targets: Tensor) -> None:
        if not self.correct and self._classes is not None:
            self._present = class_mask(self._classes, logits.shape[1]).to(logits.device)
            self._few = _find_few(self._present, self._fill, logits)
        if self._few is not None:
            logits = logits.index_select(1, self._few.classes)
            loss, predicted = self._few.loss(logits, self._few.columns(targets)), self._few.predict(logits)
        else:
            masked = mask_logits(logits, self._present, self._fill)
            loss, (_, predicted) = masked_cross_entropy(masked, targets), predict(masked)
        self.losses.append(loss)
        self.correct.append((predicted == targets).sum())


@torch.no_grad()
def _score(
    model: nn.Module,
    pieces: Callable[[], Iterable[tuple[int, Tensor, Tensor]]],
    maskings: Sequence[tuple[Sequence[int] | Tensor | None, Fill]],
) -> tuple[list[int], list[int], list[_Scores]]:
    """Return the batch and the number of targets of each piece, and the scores of each masking."""
    numbers, sizes, every = list[int](), list[int](), [_Scores(classes, fill) for classes, fill in maskings]
    for number, inputs, targets in pieces():
        output = model(inputs.clone()).float()  # a model may change its inputs in place
        (logits,), classes = flatten_positions([output], targets)
        for scores in every:
            scores.add(logits, classes)
        numbers.append(number)
        sizes.append(targets.numel())
    return numbers, sizes, every


def _find_few(present: Tensor, fill: Fill, logits: Tensor) -> PresentClasses | None:
    """Return the present classes if they are less than half of many classes, and the others are masked."""
    number = len(present)
    if logits.dim() > 2 or number < MANY or fill not in ("zero", "-inf"):
        return None
    return PresentClasses(present, fill) if 0 < 2 * present.sum() < number else None
