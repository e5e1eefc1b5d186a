"""Masked cross entropy (section 4 of the paper) and perplexity."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch.nn import functional as F

from heterofl_flwr.common.errors import ConfigError, DataError
from heterofl_flwr.core.fidelity import Fidelity, Variant
from heterofl_flwr.core.label_rows import class_numbers

Fill = Literal["zero", "-inf", "none"]
"""Value for the logits of absent classes; see ``mask_logits``."""


def class_mask(classes: Sequence[int] | torch.Tensor, number: int) -> torch.Tensor:
    """Return a boolean mask of length ``number``, True for the class numbers in ``classes``.

    Raise ``DataError`` for invalid class numbers. On a GPU, this waits for all queued work.
    """
    present = class_numbers(classes, number, DataError)
    mask = torch.zeros(number, dtype=torch.bool, device=present.device)
    mask[present] = True
    return mask


def mask_logits(logits: torch.Tensor, classes: torch.Tensor | None, fill: Fill = "zero") -> torch.Tensor:
    """Return logits in which the logits of absent classes are replaced by a constant.

    Parameters
    ----------
    logits : torch.Tensor
        Logits with classes in dimension 1.
    classes : torch.Tensor | None
        The present classes: class numbers, or a mask made by ``class_mask``, which is faster on a GPU; None for all.
    fill : Fill
        Logit of absent classes. ``zero``: 0, as in the paper's code; absent classes stay in the softmax. ``-inf``:
        absent classes are excluded from the softmax. ``none``: all logits are returned unchanged.
    """
    if fill not in get_args(Fill):
        raise ConfigError(f"{fill!r} is no fill for logits; expected one of {', '.join(get_args(Fill))}")
    if classes is None or fill == "none":
        return logits
    mask = classes if classes.dtype == torch.bool else class_mask(classes, logits.shape[1])  # (classes,)
    absent = ~mask.view(-1, *[1] * (logits.dim() - 2))  # (classes, 1, ...)
    return logits.masked_fill(absent, 0.0 if fill == "zero" else float("-inf"))


def flatten_positions(
    outputs: Sequence[torch.Tensor], targets: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return logits of shape (positions, classes) and targets of shape (positions,), if the logits are then views.

    They are views if the classes of a position are adjacent in memory, as in a Transformer's logits. Their softmax is
    twice as fast. Otherwise, return all tensors unchanged: ``outputs`` with classes in dimension 1, and ``targets``.
    """
    by_position = [logits.movedim(1, -1) for logits in outputs]
    if targets.dim() > 1 and all(logits.is_contiguous() for logits in by_position):
        return [logits.flatten(0, -2) for logits in by_position], targets.flatten()
    return list(outputs), targets


def masked_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, classes: torch.Tensor | None = None, fill: Fill = "zero"
) -> torch.Tensor:
    """Return the mean cross entropy of logits masked by ``mask_logits``.

    With the fill ``-inf``, a target that is not in ``classes`` makes the loss infinite.
    """
    masked = mask_logits(logits, classes, fill)
    with explained_targets(logits.shape[1]):
        return F.cross_entropy(masked, targets)


@contextmanager
def explained_targets(classes: int) -> Iterator[None]:
    """Within this context, raise ``DataError`` if a target is no class. A CUDA device has another error, later."""
    try:
        yield
    except IndexError as error:
        raise DataError(f"targets do not fit {classes} classes: {error}") from error


def perplexity(losses: Sequence[float], counts: Sequence[int], kind: Variant = "paper") -> float:
    """Return the perplexity of a text from the mean losses of its chunks.

    Parameters
    ----------
    losses : Sequence[float]
        The mean loss of each chunk.
    counts : Sequence[int]
        The number of tokens of each chunk.
    kind : Variant
        ``paper``: the mean over chunks of exp(loss). ``fixed``: exp of the mean loss over all tokens.
    """
    Fidelity(perplexity=kind)
    loss = torch.tensor(losses, dtype=torch.float64)
    if kind == "paper":
        return loss.exp().mean().item()
    weights = torch.tensor(counts, dtype=torch.float64)
    return ((loss * weights).sum() / weights.sum()).exp().item()
