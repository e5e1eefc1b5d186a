"""Conversion of raw splits to a ``Dataset``."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heterofl_flwr.common.errors import DataError, listed
from heterofl_flwr.data.dataset import Dataset, Split
from heterofl_flwr.data.splits import hold_out
from heterofl_flwr.data.transforms import AugmentName, Normal, as_floats, measure, normalise_

MOST_EXPECTED = 1000
"""If there are no class names, a label above this number and above the number of training examples is an error."""

Values = Sequence[int | str]
"""For each example, its class or its owner."""


@dataclass(frozen=True, slots=True, eq=False)
class Raw:
    """One split before conversion.

    Inputs are images of shape (number, channels, height, width), in uint8 or as floats from 0 to 1, or a table in
    float64 of shape (number, columns).
    """

    inputs: Tensor
    labels: Values
    names: tuple[str, ...] | None  # names of the classes 0, 1, ..., if the source has them
    place: str  # source of the split, for messages
    columns: tuple[str, ...] = ()  # names of a table's columns
    owners: Values | None = None


def to_dataset(
    name: str, train: Raw, test: Raw | None, normal: Normal | None = None, augment: AugmentName = "none"
) -> Dataset:
    """Make a data set from raw splits.

    Without a test split, every fifth example of each owner becomes a test example. If there are no owners, every fifth
    example of each class does. ``normal`` has the means and standard deviations that normalise the inputs; by default,
    they are measured on the train split.
    """
    raws = [train] if test is None else [train, test]
    targets, classes, names = _number_labels(raws)
    inputs, owners = [raw.inputs for raw in raws], number_owners(*(raw.owners for raw in raws))
    if test is None:
        is_test = hold_out(train.place, (owners or targets)[0])
        inputs, targets, owners = (
            [tensor[part] for tensor in values for part in (~is_test, is_test)] for values in (inputs, targets, owners)
        )
    inputs = [as_floats(tensor) for tensor in inputs]
    normal = normal or measure(inputs[0])
    splits = []
    for tensor, target, place in zip(inputs, targets, (train.place, raws[-1].place), strict=True):
        zero = normalise_(tensor, normal, place)
        splits.append(Split(tensor.float(), target, zero if tensor.dim() == 4 else None))
    owned = (owners[0], owners[1]) if owners else None
    return Dataset(name, splits[0], splits[1], classes, augment, normal, names, train.columns, owned)


def _number_labels(raws: Sequence[Raw]) -> tuple[list[Tensor], int, tuple[str, ...]]:
    """Return each split's labels as numbers, the number of classes, and the class names (() if unknown)."""
    train, test = raws[0], raws[-1]
    if isinstance(train.labels[0], str):  # number the names in alphabetical order
        names = tuple(sorted(map(str, set(train.labels))))
        if strange := set(test.labels) - set(train.labels):
            raise DataError(
                f"{test.place}: found {listed(map(str, strange))}, which the train split lacks; expected its classes "
                f"{listed(names, 10)}"
            )
        return _number([raw.labels for raw in raws], names), len(names), names
    splits = [[int(label) for label in raw.labels] for raw in raws]
    largest = max(splits[0])
    if not train.names and largest > max(len(splits[0]), MOST_EXPECTED):
        raise DataError(
            f"{train.place}: found label {largest} among {len(splits[0])} examples; expected class numbers 0, 1, 2, "
            "...: is data.label the column of the classes?"
        )
    classes = len(train.names) if train.names else largest + 1
    for raw, labels in zip(raws, splits, strict=True):
        if wrong := [label for label in labels if not 0 <= label < classes]:
            raise DataError(
                f"{raw.place}: found label {wrong[0]}; expected 0 to {classes - 1}, the classes of the train "
                "split: number the classes from 0, or leave out examples without a label"
            )
    return [torch.tensor(labels) for labels in splits], classes, train.names or ()


def number_owners(*splits: Values | None) -> list[Tensor]:
    """Return the owner of each example as a number, for each split with owners.

    The owners of all splits together are numbered in sorted order.
    """
    owners = [values for values in splits if values is not None]
    return _number(owners, sorted(set().union(*owners)))


def _number(splits: Sequence[Values], names: Sequence[int | str]) -> list[Tensor]:
    numbers = {name: number for number, name in enumerate(names)}
    return [torch.tensor([numbers[name] for name in values]) for values in splits]
