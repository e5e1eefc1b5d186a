"""Data sets with short names, and their properties that are known without reading them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Self

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.data.dataset import Dataset
from heterofl_flwr.data.transforms import AugmentName, Normal


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of a table's columns of labels, owners and text; empty means the default."""

    label: str = ""
    owner: str | None = None  # column with each example's owner; None if owners are not read
    text: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A data set of the Hugging Face hub, and its properties that are known without reading it."""

    path: str  # path on the hub, with the configuration; '' for digits
    shape: tuple[int, ...] = ()  # shape of one input
    classes: Mapping[str, int] = field(default_factory=dict)  # number of classes by label column; the default is first
    normal: Normal | None = None  # normalisation; if None, it is measured on the train split
    measured: Normal | None = None  # if ``normal`` is None: the measured normalisation, for nodes without a train split
    names: tuple[str, ...] = ()  # names of the classes, where known
    augment: AugmentName = "none"
    columns: Columns = Columns()  # defaults for names that a caller leaves empty
    rows: Mapping[str, int] = field(default_factory=dict)  # number of a text's rows by split; {}: rows of 64 tokens

    def fill(self, named: Columns) -> Columns:
        """Return this data set's columns, but with the label and the owner that ``named`` has.

        '' in ``named`` stands for this data set's default. Raise ``DataError`` if ``named`` has a label although the
        data set is a text.
        """
        usual = self.columns
        if usual.text and named.label:
            raise DataError(f"{self.path} is a text, without classes: found data.label={named.label!r}, expected ''")
        owner = usual.owner or "" if named.owner == "" else named.owner
        return replace(usual, label=named.label or usual.label, owner=owner)


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "digits": Source("", (1, 8, 8), {"label": 10}),
        "mnist": Source(
            "ylecun/mnist", (1, 28, 28), {"label": 10}, Normal((0.1307,), (0.3081,)), names=tuple("0123456789")
        ),
        "cifar10": Source(
            "uoft-cs/cifar10",
            (3, 32, 32),
            {"label": 10},
            Normal((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
            names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            augment="crop-flip",
        ),
        "cifar100": Source(
            "uoft-cs/cifar100",
            (3, 32, 32),
            {"fine_label": 100, "coarse_label": 20},
            measured=Normal((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
            augment="crop-flip",
            columns=Columns("fine_label"),
        ),
        "femnist": Source("flwrlabs/femnist", columns=Columns("character", "writer_id")),
        "wikitext2": Source(  # one row for each of the paper's hundred clients (section 6)
            "Salesforce/wikitext/wikitext-2-v1", columns=Columns(text="text"), rows={"train": 100, "test": 10}
        ),
    }
)
"""Data sets by their short names."""


def short_name(name: str) -> str:
    """Return the short name of a hub path such as ``ylecun/mnist``; other names are returned unchanged."""
    return next((short for short, source in SOURCES.items() if source.path == name), name)


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of a data set that a model depends on."""

    shape: tuple[int, ...]
    classes: int
    augment: AugmentName = "none"

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Return the facts of a loaded data set."""
        return cls(tuple(dataset.train.inputs.shape[1:]), dataset.classes, dataset.augment)

    @classmethod
    def find(cls, name: str, label: str = "") -> Self | None:
        """Return the facts of a data set without reading it; None if they are unknown."""
        source = SOURCES.get(short_name(name), Source(name))
        number = source.classes.get(label) if label else next(iter(source.classes.values()), None)
        return cls(source.shape, number, source.augment) if number else None
