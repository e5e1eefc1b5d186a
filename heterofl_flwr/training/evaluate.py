"""Evaluation of a model on examples."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.nn.execution import channels_last, device_of, evaluating
from heterofl_flwr.nn.loss import Fill, flatten_positions, masked_cross_entropy, perplexity
from heterofl_flwr.training.batches import batch_rows, explained_single, read_tokens
from heterofl_flwr.training.options import EvaluateResult
from heterofl_flwr.training.step import Masking


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
    maskings = [Masking(classes, fill)]
    return evaluate_each(model, split, maskings, batch_size=batch_size, seed=seed, perplexity_kind=perplexity_kind)[0]


def evaluate_each(
    model: nn.Module,
    split: Split,
    maskings: Sequence[Masking],
    *,
    batch_size: int = 100,
    seed: int = 0,
    perplexity_kind: Variant = "paper",
) -> list[EvaluateResult]:
    """Return the result of ``evaluate`` for each of ``maskings``, from one pass over the data."""
    if not len(split):
        return [EvaluateResult(0, 0.0, 0) for _ in maskings]
    device, reading = device_of(model), split.reading
    split, generator = split.to(device), torch.Generator().manual_seed(derive(seed, "hidden"))
    losses: list[list[Tensor]] = [[] for _ in maskings]
    correct = torch.zeros(len(maskings), dtype=torch.int64, device=device)
    sizes: list[int] = []
    cuts = [len(rows) for rows in batch_rows(torch.arange(len(split)), batch_size)]
    batches: Iterable[tuple[Tensor, Tensor]] = zip(split.inputs.split(cuts), split.targets.split(cuts), strict=True)
    if reading is not None:
        groups = split.inputs.split(batch_size)
        batches = (piece for rows in groups for piece in read_tokens(rows, reading, generator))
    with explained_single(), evaluating(model), channels_last(model), torch.inference_mode():
        for inputs, targets in batches:
            output = model(inputs.clone()).float()  # a model may change its inputs in place
            (outputs,), targets = flatten_positions([output], targets)
            sizes.append(targets.numel())
            for number, masking in enumerate(maskings):
                logits = masking(outputs)
                losses[number].append(masked_cross_entropy(logits, targets))
                correct[number] += (logits.argmax(1) == targets).sum()
    examples, results = sum(sizes), []
    for batches_losses, hits in zip(losses, correct.tolist(), strict=True):
        values = torch.stack(batches_losses).tolist()
        loss = sum(value * size for value, size in zip(values, sizes, strict=True)) / examples
        text = None if reading is None else perplexity(values, sizes, perplexity_kind)
        results.append(EvaluateResult(examples, loss, hits, text))
    return results
