"""Conversion of texts to rows of tokens for language models."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.data.convert import Values, number_owners
from heterofl_flwr.data.dataset import Dataset, Reading, Split
from heterofl_flwr.data.splits import hold_out

UNKNOWN, END = "<ukn>", "<eos>"
"""Special tokens: a word that the train split lacks, and the end of a text. WikiText2 itself contains a word ``<unk>``,
so the first token has another name.
"""

LENGTH = Reading(hides_as=0).length
"""Number of tokens in a row, if the number of rows is not set."""


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """The texts of a train or test split. White space separates their tokens."""

    texts: Sequence[str]
    place: str  # source of the split, for messages
    owners: Values | None = None


def to_text(name: str, train: Texts, test: Texts | None, rows: Mapping[str, int] | None = None) -> Dataset:
    """Make a data set of rows of tokens.

    ``rows`` maps the name of a split to the number of its rows. If ``rows`` is None or lacks the split, or if the texts
    have owners, each row has 64 tokens instead. If ``test`` is None, every fifth row becomes a test row; if the texts
    have owners, every fifth row of each owner.
    """
    raws, numbers = [train] if test is None else [train, test], {UNKNOWN: 0, END: 1}
    named = number_owners(*(raw.owners for raw in raws))
    whose = [numbers_of_owners.tolist() for numbers_of_owners in named] or [[0] * len(raw.texts) for raw in raws]
    counts = {} if named or rows is None else rows
    parts = [_cut(train, whose[0], lambda token: numbers.setdefault(token, len(numbers)), counts.get("train", 0))]
    if test is None:
        (tokens, owners), is_test = parts[0], hold_out(train.place, parts[0][1])
        parts = [(tokens[part], owners[part]) for part in (~is_test, is_test)]
    else:
        parts.append(_cut(test, whose[1], lambda token: numbers.get(token, 0), counts.get("test", 0)))
    reading = Reading(hides_as=len(numbers))
    splits = [Split(tokens, tokens, reading=reading) for tokens, _ in parts]
    owned = (parts[0][1], parts[1][1]) if named else None
    return Dataset(name, splits[0], splits[1], len(numbers), names=tuple(numbers), owners=owned)


def _cut(raw: Texts, owners: Sequence[int], lookup: Callable[[str], int], rows: int) -> tuple[Tensor, Tensor]:
    """Return rows of tokens, each from one owner, and the owner of each row.

    ``rows`` is the number of rows for each owner; 0 makes rows of ``LENGTH`` tokens.
    """
    streams: dict[int, list[int]] = defaultdict(list)
    for text, owner in zip(raw.texts, owners, strict=True):
        streams[owner] += map(lookup, (*text.split(), END))
    cut, whose = [], []
    for owner, stream in sorted(streams.items()):
        number, length = (rows, len(stream) // rows) if rows else (len(stream) // LENGTH, LENGTH)
        if number and length >= 2:
            cut.append(torch.tensor(stream[: number * length]).view(number, length))
            whose.append(torch.full((number,), owner))
    if not cut:
        expected = f"{rows} rows" if rows else f"a row of {LENGTH} tokens of one owner"
        count = sum(map(len, streams.values()))
        raise DataError(f"{raw.place}: found {count} tokens, too few for {expected}; is the copy complete?")
    return torch.cat(cut), torch.cat(whose)
