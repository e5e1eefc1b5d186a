"""From what a source holds to a ``Dataset``: classes are numbered and inputs normalised."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from heterofl_flwr.data.dataset import Dataset, Normal, Reading, Split
from heterofl_flwr.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """One split as read: images as uint8 (number, channels, height, width), or numbers as float32 (number, columns)."""

    inputs: Tensor
    labels: Sequence[int] | Sequence[str]
    names: tuple[str, ...] | None  # of the classes 0, 1, ..., where the source states them
    place: str  # where it was read, for messages
    columns: tuple[str, ...] = ()  # of numbers


def to_dataset(name: str, train: Raw, test: Raw, normal: Normal | None = None, augment: str = "none") -> Dataset:
    """Return a data set from its two splits as read.

    Without ``normal``, inputs are normalised by the train split's own mean and deviation, for each channel of images
    and for each column of numbers.
    """
    if train.columns != test.columns:
        raise DataError(
            f"{test.place}: found the columns {', '.join(test.columns)}; expected those of the train split in its "
            f"order: {', '.join(train.columns)}"
        )
    targets, classes, names = _number_labels(train, test)
    inputs = [raw.inputs.to(torch.float32, memory_format=torch.contiguous_format, copy=True) for raw in (train, test)]
    for raw, own in zip((train, test), inputs, strict=True):
        if raw.inputs.dtype == torch.uint8:
            own.div_(255)
    if normal is None:
        axes = [dim for dim in range(inputs[0].dim()) if dim != 1]
        deviation, mean = torch.std_mean(inputs[0], axes, correction=0)
        deviation = torch.where(deviation > 0, deviation, 1.0)
        normal = Normal(tuple(mean.tolist()), tuple(deviation.tolist()))
    else:
        mean, deviation = torch.tensor(normal.mean), torch.tensor(normal.deviation)
    splits = []
    for raw, own, target in zip((train, test), inputs, targets, strict=True):
        if own.shape[1] != len(mean):
            raise DataError(f"{raw.place}: found {own.shape[1]} channels, expected {len(mean)}")
        shape = (-1, *[1] * (own.dim() - 2))
        own.sub_(mean.view(shape)).div_(deviation.view(shape))
        splits.append(Split(own, target, -mean / deviation if own.dim() == 4 else None))
    return Dataset(name, splits[0], splits[1], classes, augment, normal=normal, names=names, columns=train.columns)


def _number_labels(train: Raw, test: Raw) -> tuple[list[Tensor], int, tuple[str, ...]]:
    """Return both splits' class numbers, how many classes there are, and their names where they have any."""
    kinds = [{type(label).__name__ for label in raw.labels} for raw in (train, test)]
    if kinds[1] - kinds[0]:
        raise DataError(f"{test.place}: labels are {', '.join(kinds[1])}; the train split's are {', '.join(kinds[0])}")
    if isinstance(train.labels[0], str):  # numbered in alphabetical order
        names = tuple(sorted(map(str, set(train.labels))))
        if strange := sorted(map(str, set(test.labels) - set(train.labels))):
            raise DataError(
                f"{test.place}: found {', '.join(strange[:5])}, which the train split lacks; expected its classes "
                f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            )
        numbers = {name: number for number, name in enumerate(names)}
        return [torch.tensor([numbers[str(one)] for one in raw.labels]) for raw in (train, test)], len(names), names
    targets = [torch.as_tensor(raw.labels, dtype=torch.int64) for raw in (train, test)]
    classes = len(train.names) if train.names else int(targets[0].max()) + 1
    for raw, target in zip((train, test), targets, strict=True):
        wrong = target[(target < 0) | (target >= classes)]
        if len(wrong):
            raise DataError(
                f"{raw.place}: found label {int(wrong[0])}; expected 0 to {classes - 1}, the classes of the train "
                "split: number the classes from 0, or leave out examples without a label"
            )
    return targets, classes, train.names or ()


ROWS: Mapping[str, int] = MappingProxyType({"train": 100, "test": 10})
"""Rows of each split; with the paper's hundred clients each has one (section 6)."""

UNKNOWN, END = "<ukn>", "<eos>"
"""A word that the train split lacks, and the end of a line. The corpus has an ``<unk>`` of its own beside the first."""


def to_text(name: str, train: Iterable[str], test: Iterable[str]) -> Dataset:
    """Return a data set of rows of tokens from the lines of two splits.

    The vocabulary has the two special tokens and the train split's words in the order in which they come first. What
    does not fill the last row is left out.
    """
    numbers = {UNKNOWN: 0, END: 1}
    tokens = {
        "train": [numbers.setdefault(word, len(numbers)) for line in train for word in (*line.split(), END)],
        "test": [numbers.get(word, 0) for line in test for word in (*line.split(), END)],
    }
    reading, splits = Reading(hides_as=len(numbers)), []
    for part, rows in ROWS.items():
        length = len(tokens[part]) // rows
        if length < 2:
            raise DataError(
                f"{name}, split {part}: found {len(tokens[part])} words, too few for {rows} rows; is the copy complete?"
            )
        cut = torch.tensor(tokens[part][: rows * length]).view(rows, length)
        splits.append(Split(cut, cut, reading=reading))
    return Dataset(name, splits[0], splits[1], classes=len(numbers), names=tuple(numbers))
