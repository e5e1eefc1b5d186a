"""Data as tensors: ``Split`` and ``Dataset``."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.data.transforms import AUGMENTS, AugmentName, Normal


@dataclass(frozen=True, slots=True)
class Reading:
    """Options for reading a text in pieces. A model sees some words masked; all words are targets.

    Attributes
    ----------
    hides_as
        The token that replaces a masked word.
    share
        The fraction of words that are masked. The words are drawn anew each time the text is read.
    length
        Number of words in a piece; the last piece of a row of tokens may be shorter.
    """

    hides_as: int
    share: float = 0.15
    length: int = 64


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Inputs and targets for training or testing.

    Attributes
    ----------
    inputs
        Normalised inputs in float32, or tokens in int64. Images have the shape (number, channels, height, width).
    targets
        Class number of each input, from 0, in int64. For text, the inputs themselves.
    black
        The normalised value of a black pixel, for each channel. Random crops pad with it, or with 0 if it is None.
    reading
        Options for reading a text; None for other data.
    """

    inputs: Tensor
    targets: Tensor
    black: Tensor | None = None
    reading: Reading | None = None

    def __post_init__(self) -> None:
        inputs, targets, kind = self.inputs, self.targets, self.inputs.dtype
        if kind not in (torch.float32, torch.int64) or inputs.dim() < 1:
            what, wrong, expected = "inputs have", inputs, "one float32 row (or int64, for tokens) for each example"
        elif self.reading is not None and (targets is not inputs or inputs.dim() != 2 or kind != torch.int64):
            what, wrong, expected = "a text has inputs of", inputs, "rows of int64 tokens that are the targets too"
        elif self.reading is None and (targets.dtype != torch.int64 or targets.shape != inputs.shape[:1]):
            what, wrong = "targets have", targets
            expected = f"one int64 class number for each of the {len(inputs)} inputs"
        else:
            return
        raise DataError(f"{what} type {wrong.dtype} and shape {tuple(wrong.shape)}; expected {expected}")

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, rows: Tensor) -> "Split":
        """Return the examples at these indices."""
        inputs = self.inputs[rows]
        return replace(self, inputs=inputs, targets=inputs if self.reading else self.targets[rows])

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on a device."""
        inputs = self.inputs.to(device)
        targets = inputs if self.reading else self.targets.to(device)
        if inputs is self.inputs and targets is self.targets:
            return self
        return replace(
            self, inputs=inputs, targets=targets, black=None if self.black is None else self.black.to(device)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A data set. Do not change it: all clients in a process share it.

    Attributes
    ----------
    name
        The name passed to ``load_dataset``.
    train, test
        The two splits.
    classes
        Number of classes; targets are from 0 to ``classes - 1``.
    augment
        Augmentation of training images: a name in ``AUGMENTS``.
    normal
        Mean and deviation by which the inputs were normalised; None if they were not.
    names
        Names of the classes, or words of a text's vocabulary, by number; () if unknown.
    columns
        Names of a table's columns; () if unknown.
    owners
        For each split, the owner of each example as a number; None if owners were not read.
    """

    name: str
    train: Split
    test: Split
    classes: int
    augment: AugmentName = "none"
    normal: Normal | None = None
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    owners: tuple[Tensor, Tensor] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or their numbers as text."""
        return self.names or tuple(map(str, range(self.classes)))

    def __post_init__(self) -> None:
        if self.augment not in AUGMENTS:
            raise DataError(f"augment is {self.augment!r}; expected one of {', '.join(AUGMENTS)}")
        for part, split in (("train", self.train), ("test", self.test)):
            if not len(split):
                raise DataError(f"{self.name}: the {part} split is empty")
            low, high = int(split.targets.min()), int(split.targets.max())
            if low < 0 or high >= self.classes:
                raise DataError(
                    f"{self.name}: targets of the {part} split reach from {low} to {high}; expected class numbers "
                    f"from 0 to {self.classes - 1}"
                )
        shapes = tuple(self.train.inputs.shape[1:]), tuple(self.test.inputs.shape[1:])
        if shapes[0] != shapes[1] and self.train.reading is None:
            raise DataError(
                f"{self.name}: an input of the train split has shape {shapes[0]}, one of the test split {shapes[1]}; "
                "expected the same"
            )
        columns = self.train.inputs[0].numel()
        for what, names, number in (("names", self.names, self.classes), ("columns", self.columns, columns)):
            if len(names) not in (0, number):
                raise DataError(f"{self.name}: there are {len(names)} {what}, expected {number}, or () if unknown")
        for split, owners in zip((self.train, self.test), self.owners or (), strict=False):
            if owners.dtype != torch.int64 or owners.shape != (len(split),):
                raise DataError(
                    f"{self.name}: owners have type {owners.dtype} and shape {tuple(owners.shape)}; expected one int64 "
                    f"number for each of the {len(split)} examples of the split"
                )
