"""Evaluate a model on a split."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.learn.masking import Masking
from heterofl_flwr.learn.model_state import channels_last, device_of, evaluating
from heterofl_flwr.learn.results import EvaluateResult
from heterofl_flwr.nn.loss import Fill, masked_cross_entropy


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    classes: Sequence[int] | Tensor | None = None,
    fill: Fill = "zero",
    batch_size: int = 100,
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
        Examples in a batch.
    """
    return _measure(model, split, [Masking(classes, fill)], batch_size)[0]


def evaluate_both(
    model: nn.Module,
    split: Split,
    *,
    classes: Sequence[int] | Tensor | None,
    fill: Fill = "zero",
    batch_size: int = 100,
) -> tuple[EvaluateResult, EvaluateResult]:
    """Measure a model without a mask and with that of some classes; its outputs are computed once.

    As ``evaluate``, called twice.
    """
    plain, masked = _measure(model, split, [Masking(None, "none"), Masking(classes, fill)], batch_size)
    return plain, masked


def _measure(model: nn.Module, split: Split, maskings: Sequence[Masking], batch_size: int) -> list[EvaluateResult]:
    """Return one result for each masking."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected 1 or more")
    device = device_of(model)
    split = split.to(device)
    losses = torch.zeros(len(maskings), device=device)
    correct = torch.zeros(len(maskings), dtype=torch.int64, device=device)
    with evaluating(model), channels_last(model), torch.inference_mode():
        for inputs, targets in zip(split.inputs.split(batch_size), split.targets.split(batch_size), strict=True):
            if len(targets):  # an empty split is one empty batch
                outputs = model(inputs)
                for number, masking in enumerate(maskings):
                    logits = masking(outputs)
                    losses[number] += masked_cross_entropy(logits, targets) * len(targets)
                    correct[number] += (logits.argmax(1) == targets).sum()
    examples = len(split)
    return [
        EvaluateResult(examples, loss / examples if examples else 0.0, right)
        for loss, right in zip(losses.tolist(), correct.tolist(), strict=True)
    ]
