"""Conversion of a node's data to the run's classes, columns and normalisation."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heterofl_flwr.common.errors import DataError, listed
from heterofl_flwr.data.dataset import Dataset, Reading, Split
from heterofl_flwr.data.known import SOURCES, Facts, short_name
from heterofl_flwr.data.transforms import Normal


@dataclass(frozen=True, slots=True)
class Terms:
    """Classes, columns, normalisation and input type of a data set.

    Unknown names of classes or columns are (). ``normal`` is None if inputs are not normalised, or if their
    normalisation is unknown. ``reading`` is None unless the data set is a text.
    """

    name: str
    classes: int
    shape: tuple[int, ...]  # shape of one input
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    normal: Normal | None = None
    reading: Reading | None = None
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, dataset: Dataset) -> "Terms":
        """Return the terms of a loaded data set."""
        inputs = dataset.train.inputs
        return cls(
            name=dataset.name,
            classes=dataset.classes,
            shape=tuple(inputs.shape[1:]),
            names=dataset.names,
            columns=dataset.columns,
            normal=dataset.normal,
            reading=dataset.train.reading,
            dtype=inputs.dtype,
        )

    @classmethod
    def of_source(cls, name: str, facts: Facts) -> "Terms":
        """Return the terms of a data set with a short name, such as ``mnist``, without loading it."""
        source = SOURCES[short_name(name)]
        return cls(name, facts.classes, facts.shape, names=source.names, normal=source.normal or source.measured)


def align(dataset: Dataset, terms: Terms) -> Dataset:
    """Convert a node's data to the run's classes, columns and normalisation.

    Raise ``DataError`` if the classes, the columns, or the dtype or shape of the inputs do not fit, or if only one of
    the two data sets is a text.
    """
    if (dataset.train.reading is None) != (terms.reading is None):
        raise DataError(f"of {dataset.name} and the run's data set, {terms.name}, only one is a text")
    if dataset.train.reading is not None:
        return _align_text(dataset, terms)
    order = _order_columns(dataset, terms)
    shape, dtype = tuple(dataset.train.inputs.shape[1:]), dataset.train.inputs.dtype
    if (shape, dtype) != (terms.shape, terms.dtype):
        raise DataError(
            f"inputs of {dataset.name} are {dtype} of shape {shape}; expected {terms.dtype} of shape {terms.shape}, as "
            f"in the run's data set, {terms.name}"
        )
    lookup = _number_classes(dataset, terms)
    before = dataset.normal
    if before and order:
        before = Normal(*(tuple(values[column] for column in order) for values in (before.mean, before.deviation)))
    normal = terms.normal if before and terms.normal else before
    train, test = (_align_split(split, order, lookup, before, normal) for split in (dataset.train, dataset.test))
    return replace(
        dataset, train=train, test=test, classes=terms.classes, names=terms.names, columns=terms.columns, normal=normal
    )


def _order_columns(dataset: Dataset, terms: Terms) -> list[int] | None:
    """Return the node's column index for each column of the run; None if the columns are equal or unnamed."""
    if dataset.columns == terms.columns or not (dataset.columns and terms.columns):
        return None
    missing = [name for name in terms.columns if name not in dataset.columns]
    added = [name for name in dataset.columns if name not in terms.columns]
    if missing or added:
        wrong = [f"{what} {listed(names)}" for what, names in (("lacks", missing), ("adds", added)) if names]
        raise DataError(
            f"{dataset.name} {' and '.join(wrong)}; expected the columns of the run's data set, {terms.name}: "
            f"{', '.join(terms.columns)}"
        )
    return [dataset.columns.index(name) for name in terms.columns]


def _number_classes(dataset: Dataset, terms: Terms) -> Tensor | None:
    """Return the class number in the run for each class of the node.

    If the node or the run has no class names, return None: class numbers stay as they are. Raise ``DataError`` if the
    run lacks a class of the node, or if only the node has class names and the numbers of classes differ.
    """
    if dataset.names and terms.names:
        if strange := [name for name in dataset.names if name not in terms.names]:
            raise DataError(
                f"{dataset.name} has the classes {listed(strange)}, which the run's data set, "
                f"{terms.name}, lacks; expected some of {listed(terms.names)}"
            )
        return torch.tensor([terms.names.index(name) for name in dataset.names])
    if dataset.names and dataset.classes != terms.classes:
        raise DataError(
            f"{dataset.name} names {dataset.classes} classes ({listed(dataset.names)}), and the run has "
            f"{terms.classes} without names: expected as many, or a table with class numbers"
        )
    if dataset.classes > terms.classes:
        raise DataError(
            f"{dataset.name} has class numbers up to {dataset.classes - 1}; expected up to {terms.classes - 1}"
        )
    return None


def _align_split(
    split: Split, order: list[int] | None, lookup: Tensor | None, before: Normal | None, after: Normal | None
) -> Split:
    targets, black = split.targets, split.black
    inputs = split.inputs if order is None else split.inputs[:, order]
    if before is not None and after is not None and before != after:
        old, new = (torch.tensor([normal.mean, normal.deviation], dtype=torch.float64) for normal in (before, after))
        shape = (-1, *[1] * (inputs.dim() - 2))
        scale, shift, zero = ((value / new[1]).float() for value in (old[1], old[0] - new[0], -new[0]))
        inputs = inputs * scale.view(shape) + shift.view(shape)
        black = None if black is None else zero
    return replace(split, inputs=inputs, targets=targets if lookup is None else lookup[targets], black=black)


def _align_text(dataset: Dataset, terms: Terms) -> Dataset:
    """Convert tokens to the numbers in the run's vocabulary; words outside it become token 0.

    If neither the node nor the run has a vocabulary, tokens keep their numbers.
    """
    if bool(dataset.names) != bool(terms.names):
        named, unnamed = (dataset, terms) if dataset.names else (terms, dataset)
        raise DataError(
            f"{named.name} names the words of its tokens, and {unnamed.name} does not; expected both or neither: set "
            f"Dataset.names for {unnamed.name}"
        )
    numbers = {name: number for number, name in enumerate(terms.names)}
    lookup = torch.tensor([numbers.get(name, 0) for name in dataset.names] or list(range(dataset.classes)))
    train, test = (
        Split(rows, rows, reading=terms.reading) for rows in (lookup[dataset.train.inputs], lookup[dataset.test.inputs])
    )
    return replace(dataset, train=train, test=test, classes=terms.classes, names=terms.names)
