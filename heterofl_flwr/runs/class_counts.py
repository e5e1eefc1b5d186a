"""``classes.json``: numbers of training examples and of predictions by class."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from heterofl_flwr.common.files import reading, to_json, write_atomic
from heterofl_flwr.runs.folder import RunFolder

LARGEST = 1_000_000
"""Maximum number of entries of a matrix; a larger matrix is left out."""

Matrix = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Counts by class. A matrix is empty if its counts are unknown, or if it is left out (see ``count_pairs``).

    Attributes
    ----------
    names
        Names of the classes, in the order of the class numbers.
    clients
        Numbers of training examples, by client and class.
    confusion
        Numbers of test examples, by class and predicted class.
    server_round
        The round whose model made the predictions.
    """

    names: Sequence[str] = ()
    clients: Matrix = ()
    confusion: Matrix = ()
    server_round: int = 0

    def __post_init__(self) -> None:
        widths = {len(row) for row in (*self.clients, *self.confusion)}
        if widths - {len(self.names)} or len(self.confusion) not in (0, len(self.names)):
            raise ValueError(f"a matrix is not of {len(self.names)} classes")


_COUNTS = TypeAdapter(ClassCounts)


def count_pairs(rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Matrix:
    """Return a matrix of shape ``shape`` that counts how often each pair (row, column) occurs.

    The matrix is empty if there are no pairs, if ``shape`` has more than ``LARGEST`` entries, or if a column is outside
    ``shape``.
    """
    height, width = shape
    if height * width > LARGEST or not len(rows) or int(columns.max()) >= width:
        return ()
    counts: Matrix = torch.bincount(rows * width + columns, minlength=height * width).view(shape).tolist()
    return counts


def read_counts(folder: RunFolder) -> ClassCounts:
    """Return the class counts in a run's folder; empty counts if it has none."""
    with reading(folder.classes, "remove it: reports then show no classes"):
        return _COUNTS.validate_json(folder.classes.read_bytes()) if folder.classes.exists() else ClassCounts()


def write_counts(folder: RunFolder, **counts: Any) -> None:
    """Write fields of ``ClassCounts`` into ``classes.json``; all other fields keep their values."""
    merged = replace(read_counts(folder), **counts)
    write_atomic(folder.classes, to_json({each.name: getattr(merged, each.name) for each in fields(merged)}).encode())
