"""How many examples of each class each client was dealt: a table in the run's folder, a matrix on its page."""

import csv
import io
from dataclasses import dataclass

import numpy as np

from heterofl_flwr.errors import DataError

HEAD = ("client", "class", "train", "test")

Counts = tuple[tuple[int, ...], ...]
"""For each client the number of examples of each class."""


@dataclass(frozen=True, slots=True)
class Deal:
    """The numbers of examples, by client and class."""

    train: Counts
    test: Counts

    def to_csv(self) -> str:
        """Return a line for each client and class of which it has examples."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(HEAD)
        for client, (train, test) in enumerate(zip(self.train, self.test, strict=True)):
            for number, counts in enumerate(zip(train, test, strict=True)):
                if any(counts):
                    writer.writerow((client, number, *counts))
        return buffer.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> "Deal":
        """Read what ``to_csv`` wrote."""
        head, *lines = csv.reader(io.StringIO(text))
        try:
            if tuple(head) != HEAD:
                raise ValueError(f"its head is {','.join(head)}, expected {','.join(HEAD)}")
            rows = np.array([[int(value) for value in line] for line in lines], dtype=np.int64).reshape(-1, len(HEAD))
            counts = np.zeros((2, *(rows[:, :2].max(0) + 1)), dtype=np.int64)  # (train or test, clients, classes)
            counts[:, rows[:, 0], rows[:, 1]] = rows[:, 2:].T
        except (ValueError, IndexError) as error:
            raise DataError(f"the table of what clients were dealt cannot be read: {error}") from error
        train, test = (tuple(tuple(row) for row in part.tolist()) for part in counts)
        return cls(train, test)
