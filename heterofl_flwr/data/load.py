"""Find a data set by name: bundled, offline, in a folder, from a user's function, or on the hub.

What reads files is loaded where it is needed: it brings libraries that a client with other data can do without.
"""

import importlib
import os
import threading
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from torch import Tensor

from heterofl_flwr.data.convert import Raw, to_dataset, to_text
from heterofl_flwr.data.dataset import KNOWN, Dataset, Normal, Split
from heterofl_flwr.data.tables import read_table
from heterofl_flwr.errors import DataError


def ask_hub(name: str) -> tuple[Raw, Raw]:
    """Return the train and test splits of a data set of the hub; ``datasets`` keeps its own copy of the files."""
    splits = _load_from_hub(name)
    train, test = (read_table(_arrow(splits[part]), f"{name}, split {part}") for part in ("train", "test"))
    return train, test


def ask_hub_for_lines(name: str, configuration: str) -> tuple[list[str], list[str]]:
    """Return the texts of the train and test splits of a data set of the hub."""
    splits = _load_from_hub(name, configuration)
    return list(splits["train"]["text"]), list(splits["test"]["text"])


def _load_from_hub(name: str, *configuration: str) -> Any:
    """Return a data set's splits by name; refuse one without train or test."""
    import datasets  # type: ignore[import-untyped]  # takes a second to load

    try:
        splits = datasets.load_dataset(name, *configuration)
    except Exception as error:  # offline, missing, gated, several configurations: each library has its own errors
        raise DataError(
            f"the hub's data set {name!r} cannot be loaded ({type(error).__name__}: {error}). Check the name and the "
            "network; or put a copy in a folder laid out like the hub and name that folder as data.root or in "
            "HETEROFL_DATA; or use digits, which needs neither"
        ) from error
    missing = [part for part in ("train", "test") if part not in splits]
    if missing:
        raise DataError(
            f"the hub's data set {name!r} has no {' and no '.join(missing)} split, only {', '.join(splits)}: write a "
            "function that makes them and name it as module:function"
        )
    return splits


def _arrow(split: Any) -> pa.Table:
    """Return a split as a table with the hub's features beside it."""
    table: pa.Table = split.with_format("arrow")[:]
    return table.replace_schema_metadata(split.features.arrow_schema.metadata)


_EXPECTED = "expected a Dataset or ((train inputs, train targets), (test inputs, test targets))"


def from_function(name: str) -> Dataset:
    """Call ``module:function`` and return its data.

    It may return a ``Dataset``, or two pairs of arrays or tensors. These are used as they are, only floats and bytes
    become float32: normalise them first. The number of classes is the largest target plus one.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DataError(
            f"{name}: the module {module_name} cannot be imported ({error}); is it on PYTHONPATH?"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(f"{name}: {module.__file__} has no function {function_name}")
    made = function()
    if isinstance(made, Dataset):
        return made
    if not _is_pair(made) or not all(_is_pair(part) for part in made):
        raise DataError(f"{name} returned {type(made).__name__}; {_EXPECTED}")
    train, test = (
        _split(cast("tuple[object, object]", part), f"{name}, {title} split")
        for title, part in zip(("train", "test"), made, strict=True)
    )
    classes = 1 + max(int(split.targets.max()) if len(split) else 0 for split in (train, test))
    return Dataset(name, train, test, classes)


def _is_pair(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _split(pair: tuple[object, object], place: str) -> Split:
    inputs, targets = (_tensor(value, place) for value in pair)
    if targets.is_floating_point() or targets.is_complex():
        raise DataError(f"{place}: targets are {targets.dtype}; expected class numbers, as integers from 0")
    whole = not inputs.is_floating_point() and inputs.dtype != torch.uint8
    try:
        return Split(inputs.to(torch.int64 if whole else torch.float32), targets.to(torch.int64))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _tensor(value: object, place: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{place}: {type(value).__name__} is no array of numbers ({error}); {_EXPECTED}") from error


FILE = Path("datasets", "data", "digits.csv.gz")

TEST_EVERY = 5
"""Of each class, every fifth example is for testing."""


def digits() -> Dataset:
    """Return scikit-learn's handwritten digits, 1,797 images of 8x8 pixels, a fifth of each class for testing."""
    # Not load_digits(), which does the same: scikit-learn takes more than a second to load, in each process.
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(
            "the data set digits is a file of scikit-learn, which is not installed: pip install scikit-learn"
        )
    rows = torch.from_numpy(np.loadtxt(Path(found.origin).parent / FILE, delimiter=","))  # (number, 64 + 1)
    images = rows[:, :-1].reshape(-1, 1, 8, 8) / 16  # (number, 1, 8, 8), in 0 to 1
    labels = rows[:, -1].long()
    rank = torch.zeros_like(labels)  # the how manieth of its class
    for name in labels.unique():
        mine = labels == name
        rank[mine] = torch.arange(int(mine.sum()))
    test = rank % TEST_EVERY == TEST_EVERY - 1
    train_raw, test_raw = (
        Raw(images[part].float(), labels[part].tolist(), tuple("0123456789"), "digits") for part in (~test, test)
    )
    return to_dataset("digits", train_raw, test_raw)


ROOT_VARIABLE = "HETEROFL_DATA"
"""The environment variable that stands in for ``root``."""

HUB_NAMES: Mapping[str, str] = MappingProxyType(
    {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10", "wikitext2": "Salesforce/wikitext/wikitext-2-v1"}
)
"""Short names for data sets of the hub."""

_PUBLISHED = {
    "ylecun/mnist": (Normal((0.1307,), (0.3081,)), KNOWN["mnist"].augment),
    "uoft-cs/cifar10": (Normal((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), KNOWN["cifar10"].augment),
}
_lock = threading.RLock()  # a user's function may load another data set


def load_dataset(name: str, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Return a data set; the second call in a process returns the same object.

    Parameters
    ----------
    name : str
        ============================  ==================================================================
        ``digits``                    scikit-learn's 1,797 images of 8x8 pixels; needs neither files nor network
        ``mnist``, ``cifar10``        normalised as in the paper
        ``wikitext2``                 rows of words, for a language model
        ``user/set``                  any data set of the hub with an image and a label column
        a folder                      ``train/<class>/*.png``, or ``train.csv``, or ``train*.parquet``; ``test`` alike
        ``module:function``           the function returns a ``Dataset`` or ``((x, y), (x, y))``, train and test
        ============================  ==================================================================
    root : str | os.PathLike[str] | None
        A folder laid out like the hub, ``<root>/ylecun/mnist/...``, to be read in its place. Default: the
        environment variable ``HETEROFL_DATA``; without it, the hub is asked.

    Raises
    ------
    DataError
        If there is no such data set, or it cannot be read.
    """
    root = root or os.environ.get(ROOT_VARIABLE) or None
    key = None if root is None else str(Path(root).expanduser().absolute())
    if name.startswith((".", "~")) or (key is None and name not in ("digits", *HUB_NAMES) and Path(name).is_dir()):
        name = str(Path(name).expanduser().absolute())
    with _lock:  # threads that ask at once shall not read twice
        return _load(name, key)


@lru_cache(maxsize=4)
def _load(name: str, root: str | None) -> Dataset:
    if name == "digits":
        return digits()
    if ":" in name and "/" not in name:
        return from_function(name)
    from heterofl_flwr.data.folder import read_folder

    hub_name = HUB_NAMES.get(name, name)
    if "/" not in hub_name and (root is None or not (Path(root) / hub_name).is_dir()):
        raise DataError(_unknown(name))
    if hub_name == HUB_NAMES["wikitext2"]:
        return to_text(name, *_lines(hub_name, root))
    if Path(hub_name).is_absolute():
        train, test = read_folder(_folder(Path(hub_name), "name another one"))
    elif root is not None:
        train, test = read_folder(_copy(root, hub_name))
    else:
        from heterofl_flwr.data.load import ask_hub

        train, test = ask_hub(hub_name)
    normal, augment = _PUBLISHED.get(hub_name, (None, "none"))
    return to_dataset(name, train, test, normal, augment)


def _unknown(name: str) -> str:
    ours = ("digits", *HUB_NAMES)
    near = get_close_matches(name, ours, n=1)
    hint = f" did you mean {near[0]}?" if near else ""
    return (
        f"there is no data set {name!r};{hint} expected one of {', '.join(ours)}, user/set of the hub, "
        "a folder, or module:function"
    )


def _lines(hub_name: str, root: str | None) -> tuple[list[str], list[str]]:
    """Return the lines of a text of the hub, or of its copy."""
    if root is not None:
        from heterofl_flwr.data.folder import read_lines

        return read_lines(_copy(root, hub_name))
    from heterofl_flwr.data.load import ask_hub_for_lines

    owner_and_name, _, configuration = hub_name.rpartition("/")
    return ask_hub_for_lines(owner_and_name, configuration)


def _copy(root: str, hub_name: str) -> Path:
    remedy = f"expected a copy of the hub's {hub_name} there; without root and {ROOT_VARIABLE} the hub is asked"
    return _folder(Path(root) / hub_name, remedy)


def _folder(path: Path, remedy: str) -> Path:
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: {remedy}")
    return path
