"""Evaluate a model on a split."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.execution import channels_last
from heterofl_flwr.nn.loss import Fill, masked_cross_entropy, perplexity
from heterofl_flwr.training.batches import read
from heterofl_flwr.training.device import device_of, evaluating
from heterofl_flwr.training.losses import Masking
from heterofl_flwr.training.options import EvaluateResult


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
    """Measure loss and accuracy in evaluation mode; the model and its modes stay as they are.

    Batch norm layers without running statistics normalise by batch even here: measure those of the data first, and
    evaluate ``heterofl_flwr.nn.with_static_norm(model, moments)``.

    Parameters
    ----------
    model : nn.Module
        From a batch of inputs to logits, classes on axis 1.
    split : Split
        The examples; moved to the model's device if they are elsewhere. There may be none.
    classes : Sequence[int] | Tensor | None
        Any classes: the others' logits are filled. None for all.
    fill : Fill
        ``zero``, ``-inf`` or ``none``; with ``-inf``, an example of an absent class makes the loss infinite.
    batch_size : int
        Examples in a batch; rows, of a text.
    seed : int
        Which words of a text are hidden depends on it.
    perplexity_kind : Variant
        How the perplexity of a text follows from its pieces; see ``heterofl_flwr.nn.perplexity``.
    """
    return _measure(model, split, [Masking(classes, fill)], batch_size, seed, perplexity_kind)[0]


def evaluate_both(
    model: nn.Module,
    split: Split,
    *,
    classes: Sequence[int] | Tensor | None,
    fill: Fill = "zero",
    batch_size: int = 100,
    seed: int = 0,
    perplexity_kind: Variant = "paper",
) -> tuple[EvaluateResult, EvaluateResult]:
    """Measure a model without a mask and with that of some classes; its outputs are computed once.

    As ``evaluate``, called twice.
    """
    maskings = [Masking(None, "none"), Masking(classes, fill)]
    plain, masked = _measure(model, split, maskings, batch_size, seed, perplexity_kind)
    return plain, masked


def _measure(
    model: nn.Module, split: Split, maskings: Sequence[Masking], batch_size: int, seed: int, kind: Variant
) -> list[EvaluateResult]:
    """Return one result for each masking."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
    device = device_of(model)
    split = split.to(device)
    losses: list[list[Tensor]] = [[] for _ in maskings]
    correct = torch.zeros(len(maskings), dtype=torch.int64, device=device)
    sizes: list[int] = []
    with evaluating(model), channels_last(model), torch.inference_mode():
        for inputs, targets in _batches(split, batch_size, seed):
            outputs = model(inputs)
            sizes.append(targets.numel())
            for number, masking in enumerate(maskings):
                logits = masking(outputs)
                losses[number].append(masked_cross_entropy(logits, targets))
                correct[number] += (logits.argmax(1) == targets).sum()
    text = kind if split.reading is not None else None
    return [_result(own, sizes, right, text) for own, right in zip(losses, correct.tolist(), strict=True)]


def _batches(split: Split, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    if not len(split):
        return
    if split.reading is None:
        yield from zip(split.inputs.split(batch_size), split.targets.split(batch_size), strict=True)
        return
    generator = torch.Generator().manual_seed(derive(seed, "hidden"))
    for rows in split.inputs.split(batch_size):
        yield from read(rows, split.reading, generator)


def _result(losses: Sequence[Tensor], sizes: Sequence[int], correct: int, text: Variant | None) -> EvaluateResult:
    """Return the result of one masking; ``text`` tells how a perplexity is computed, if one is."""
    if not sizes:
        return EvaluateResult(0, 0.0, 0)
    values = torch.stack(list(losses)).tolist()
    examples = sum(sizes)
    loss = sum(value * size for value, size in zip(values, sizes, strict=True)) / examples
    return EvaluateResult(examples, loss, correct, perplexity(values, sizes, text) if text else None)
