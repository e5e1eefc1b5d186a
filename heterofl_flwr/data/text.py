"""Text for language models: words are numbered, and each split is cut in rows of equal length."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch

from heterofl_flwr.data.dataset import Dataset, Reading, Split
from heterofl_flwr.errors import DataError

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
    tokens = {"train": [numbers.setdefault(word, len(numbers)) for word in _words(train)]}
    tokens["test"] = [numbers.get(word, 0) for word in _words(test)]
    reading = Reading(hides_as=len(numbers))
    splits = {part: _rows(f"{name}, split {part}", found, ROWS[part], reading) for part, found in tokens.items()}
    return Dataset(name, splits["train"], splits["test"], classes=len(numbers), names=tuple(numbers))


def _words(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from line.split()
        yield END


def _rows(place: str, tokens: Sequence[int], rows: int, reading: Reading) -> Split:
    length = len(tokens) // rows
    if length < 2:
        raise DataError(f"{place}: found {len(tokens)} words, too few for {rows} rows; is the copy complete?")
    cut = torch.tensor(tokens[: rows * length]).view(rows, length)
    return Split(cut, cut, reading=reading)
