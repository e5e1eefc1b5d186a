"""Data as tensors: a split of inputs and targets, and a data set of two of them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.data.augment import AUGMENTS, AugmentName


@dataclass(frozen=True, slots=True)
class Reading:
    """Reading of rows of text: pieces in their order, with hidden words, and all words as targets.

    Attributes
    ----------
    hides_as
        The token that stands for a hidden word.
    share
        The share of words that are hidden, drawn anew at each reading.
    length
        Words in a piece; the last piece of a row may be shorter.
    """

    hides_as: int
    share: float = 0.15
    length: int = 64


@dataclass(frozen=True, slots=True)
class Normal:
    """Mean and standard deviation for normalisation, by channel of images (pixels from 0 to 1) or by column."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Inputs and targets, number for number.

    Attributes
    ----------
    inputs
        Normalised, float32; images are (number, channels, height, width). Whole numbers are kept for models that
        read tokens.
    targets
        Class numbers from 0, int64; for text the inputs themselves.
    black
        What a black pixel has become, for each channel: random crops pad with it. None pads with 0.
    reading
        For text, how its rows are read.
    """

    inputs: Tensor
    targets: Tensor
    black: Tensor | None = None
    reading: Reading | None = None

    def __post_init__(self) -> None:
        """Validate that the tensors belong together."""
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
        """Return the number of examples."""
        return len(self.targets)

    def select(self, rows: Tensor) -> "Split":
        """Return the examples of some row numbers, copied."""
        inputs = self.inputs[rows]
        return replace(self, inputs=inputs, targets=inputs if self.reading else self.targets[rows])

    def to(self, device: torch.device | str) -> "Split":
        """Return the split on a device; itself where it is there already."""
        inputs = self.inputs.to(device)
        targets = inputs if self.reading else self.targets.to(device)
        if inputs is self.inputs and targets is self.targets:
            return self
        return replace(
            self, inputs=inputs, targets=targets, black=None if self.black is None else self.black.to(device)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A data set, held once in a process and shared by all its clients: read it, never change it.

    Attributes
    ----------
    name
        Where it comes from, as given to ``load_dataset``.
    train, test
        Its two splits.
    classes
        Number of classes; targets are 0 to one less.
    augment
        How training images are varied: a name in ``AUGMENTS``.
    normal
        How inputs were normalised; None where they are as the source gives them.
    names
        The names of the classes, or the words of a text, number by number; none where the source states none.
    columns
        The names of the columns of a table, in the order in which models see them.
    owners
        The number of each example's owner, for the train and for the test split; None if not asked for.
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

    def __post_init__(self) -> None:
        """Validate that splits are not empty and agree in shape, and that targets are classes."""
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
        for split, owners in zip((self.train, self.test), self.owners or (), strict=False):
            if owners.dtype != torch.int64 or owners.shape != (len(split),):
                raise DataError(
                    f"{self.name}: owners have type {owners.dtype} and shape {tuple(owners.shape)}; expected one int64 "
                    f"number for each of the {len(split)} examples of the split"
                )
