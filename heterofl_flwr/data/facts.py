"""What a model's shape and training follow from: of some data sets it is known before they are loaded.

A node with data of its own need not have the run's data set, and a small one need not load it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from heterofl_flwr.data.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Facts:
    """What a data set is like.

    Attributes
    ----------
    shape
        The shape of one input.
    classes
        Number of classes.
    augment
        How training images are varied.
    """

    shape: tuple[int, ...]
    classes: int
    augment: str = "none"

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Return those of a data set that is loaded."""
        return cls(tuple(dataset.train.inputs.shape[1:]), dataset.classes, dataset.augment)


KNOWN: Mapping[str, Facts] = MappingProxyType(
    {
        "digits": Facts((1, 8, 8), 10),
        "mnist": Facts((1, 28, 28), 10),
        "cifar10": Facts((3, 32, 32), 10, "crop-flip"),
    }
)
"""By our own names; a text's vocabulary is not known before it is read."""
