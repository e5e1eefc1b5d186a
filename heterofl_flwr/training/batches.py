"""Batches of a client's data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data.dataset import Reading, Split
from heterofl_flwr.data.transforms import AUGMENTS, AugmentName
from heterofl_flwr.training.options import TrainingJob, TrainOptions

AT_ONCE = 1024
"""Number of examples up to which batches are joined before augmentation. Single small batches would underuse a GPU."""


def batch_rows(order: Tensor, batch_size: int) -> Sequence[Tensor]:
    """Split the row numbers in ``order`` into batches.

    If ``batch_size`` is above 1, a last batch of one row joins the batch before it, because batch norm cannot normalise
    a single value.
    """
    pieces = list(order.split(batch_size)) if len(order) else []
    if batch_size > 1 and len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


@contextmanager
def explained_single() -> Iterator[None]:
    """Within this context, raise ``DataError`` if batch norm gets only one value per channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            f"batch norm cannot normalise a single example ({error}): give this client more of them, batches of "
            "two or more, or a model with another norm"
        ) from error


def read_tokens(tokens: Tensor, reading: Reading, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Split ``tokens`` along axis 1 into pieces of ``reading.length`` columns; yield (inputs, targets) for each piece.

    The targets are the tokens of the piece. In the inputs, random tokens are masked. The last piece may be shorter.
    """
    hidden = torch.rand(tokens.shape, generator=generator) < reading.share  # (rows, words)
    masked = tokens.masked_fill(hidden.to(tokens.device), reading.hides_as)
    yield from zip(masked.split(reading.length, 1), tokens.split(reading.length, 1), strict=True)


def training_batches(
    split: Split, options: TrainOptions, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of inputs and targets for one epoch, with the examples in random order."""
    device, augment = split.targets.device, AUGMENTS[options.augment]
    on_gpu = device.type == "cuda"  # a copy from pinned memory does not wait for the GPU
    order = torch.randperm(len(split), generator=generator, pin_memory=on_gpu).to(device, non_blocking=on_gpu)
    batches = batch_rows(order, options.batch_size)
    for rows, sizes in _joined(batches, 1 if split.reading else AT_ONCE // options.batch_size):
        if split.reading:
            yield from read_tokens(split.inputs[rows], split.reading, generator)
            continue
        inputs = augment(split.inputs[rows], generator, split.black, None)
        yield from zip(inputs.split(sizes), split.targets[rows].split(sizes), strict=True)


def _joined(batches: Sequence[Tensor], number: int) -> Iterator[tuple[Tensor, list[int]]]:
    number = max(number, 1)
    for start in range(0, len(batches), number):
        group = list(batches[start : start + number])
        yield torch.cat(group), list(map(len, group))


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Return the number of training steps in an epoch."""
    groups = len(batch_rows(torch.empty(len(split)), batch_size))
    return groups if split.reading is None else groups * -(-split.inputs.shape[1] // split.reading.length)


def count_steps(job: TrainingJob, options: TrainOptions) -> int:
    """Return the number of a client's training steps in a round: ``step_share`` of all steps, rounded up."""
    return job.limit_steps(steps_per_epoch(job.split, options.batch_size) * options.epochs)


def training_epochs(job: TrainingJob, options: TrainOptions) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """For each epoch, yield an iterator over its batches.

    All epochs together have ``count_steps`` batches, so the last epoch may be shorter. Exhaust each iterator before you
    take the next iterator.
    """
    generator = torch.Generator().manual_seed(derive(job.seed, "batches"))
    steps = steps_per_epoch(job.split, options.batch_size)
    for remaining in range(count_steps(job, options), 0, -steps):
        yield islice(training_batches(job.split, options, generator), remaining)


def input_batches(
    split: Split, batch_size: int, *, seed: int | None = None, augment: AugmentName = "none"
) -> Iterator[Tensor]:
    """Yield batches of a split's inputs without targets, for ``heterofl_flwr.nn.collect_moments``.

    Parameters
    ----------
    split : Split
        The data, on the model's device.
    batch_size : int
        Number of inputs in a batch. If it is above 1, a last batch of one input joins the batch before it.
    seed : int | None
        Random seed of order and augmentation. None keeps the order of the split, and augments with the seed 0.
    augment : str
        Augmentation of images, by its name in ``TrainOptions.augment``.
    """
    generator = torch.Generator().manual_seed(derive(seed or 0, "moments"))
    order = torch.arange(len(split)) if seed is None else torch.randperm(len(split), generator=generator)
    for rows, sizes in _joined(batch_rows(order.to(split.inputs.device), batch_size), AT_ONCE // batch_size):
        yield from AUGMENTS[augment](split.inputs[rows], generator, split.black, sizes).split(sizes)
