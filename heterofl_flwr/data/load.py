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
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from heterofl_flwr.data.convert import Raw, to_dataset, to_text
from heterofl_flwr.data.dataset import KNOWN, Dataset, Normal, Split
from heterofl_flwr.errors import DataError, extra

ROOT_VARIABLE = "HETEROFL_DATA"
"""The environment variable that stands in for ``root``."""

HUB_NAMES: Mapping[str, str] = MappingProxyType(
    {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10", "wikitext2": "Salesforce/wikitext/wikitext-2-v1"}
)
"""Short names for data sets of the hub."""

TEST_EVERY = 5
"""Of each class of the digits, every fifth example is for testing."""

_PUBLISHED = {
    "ylecun/mnist": (Normal((0.1307,), (0.3081,)), KNOWN["mnist"].augment),
    "uoft-cs/cifar10": (Normal((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), KNOWN["cifar10"].augment),
}
_EXPECTED = "expected a Dataset or ((train inputs, train targets), (test inputs, test targets))"
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
    with _lock:  # threads that ask at once must not read twice
        return _load(name, key)


@lru_cache(maxsize=4)
def _load(name: str, root: str | None) -> Dataset:
    if name == "digits":
        return _digits()
    if ":" in name and "/" not in name:
        return _from_function(name)
    hub_name = HUB_NAMES.get(name, name)
    if "/" not in hub_name and (root is None or not (Path(root) / hub_name).is_dir()):
        ours = ("digits", *HUB_NAMES)
        near = get_close_matches(name, ours, n=1)
        hint = f" did you mean {near[0]}?" if near else ""
        raise DataError(
            f"there is no data set {name!r};{hint} expected one of {', '.join(ours)}, user/set of the hub, "
            "a folder, or module:function"
        )
    with extra("data"):
        from heterofl_flwr.data.folder import read_folder, read_lines, read_table

    folder = _find_folder(root, hub_name)
    if hub_name == HUB_NAMES["wikitext2"]:
        if folder:
            return to_text(name, *read_lines(folder))
        owner_and_name, _, configuration = hub_name.rpartition("/")
        splits = _ask_hub(owner_and_name, configuration)
        return to_text(name, splits["train"]["text"], splits["test"]["text"])
    if folder:
        train, test = read_folder(folder)
    else:
        splits, raws = _ask_hub(hub_name), []
        for part in ("train", "test"):
            features = splits[part].features.arrow_schema.metadata
            table = splits[part].with_format("arrow")[:].replace_schema_metadata(features)
            raws.append(read_table(table, f"{hub_name}, split {part}"))
        train, test = raws
    normal, augment = _PUBLISHED.get(hub_name, (None, "none"))
    return to_dataset(name, train, test, normal, augment)


def _find_folder(root: str | None, hub_name: str) -> Path | None:
    """Return the folder to read, or None where the hub is to be asked."""
    path, remedy = Path(hub_name), "name another one"
    if not path.is_absolute():
        if root is None:
            return None
        path = Path(root) / hub_name
        remedy = f"expected a copy of the hub's {hub_name} there; without root and {ROOT_VARIABLE} the hub is asked"
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: {remedy}")
    return path


def _ask_hub(name: str, *configuration: str) -> Any:
    """Return the splits of a data set of the hub; ``datasets`` keeps its own copy of the files."""
    with extra("data"):  # here, as it takes a second to load
        import datasets  # type: ignore[import-untyped]

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


def _from_function(name: str) -> Dataset:
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
    pairs = (made, *(made if isinstance(made, Sequence) else ()))
    if not all(isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2 for pair in pairs):
        raise DataError(f"{name} returned {type(made).__name__}; {_EXPECTED}")
    train, test = (_to_split(made[place], f"{name}, {part} split") for place, part in enumerate(("train", "test")))
    classes = 1 + max(int(split.targets.max()) if len(split) else 0 for split in (train, test))
    return Dataset(name, train, test, classes)


def _to_split(pair: Sequence[object], place: str) -> Split:
    tensors: list[Tensor] = []
    for value in pair:
        try:
            tensors.append(torch.as_tensor(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{place}: {type(value).__name__} is no array of numbers ({error}); {_EXPECTED}") from error
    inputs, targets = tensors
    if targets.is_floating_point() or targets.is_complex():
        raise DataError(f"{place}: targets are {targets.dtype}; expected class numbers, as integers from 0")
    whole = not inputs.is_floating_point() and inputs.dtype != torch.uint8
    try:
        return Split(inputs.to(torch.int64 if whole else torch.float32), targets.to(torch.int64))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _digits() -> Dataset:
    """Return scikit-learn's handwritten digits, 1,797 images of 8x8 pixels, a fifth of each class for testing."""
    # Not load_digits(), which does the same: scikit-learn takes more than a second to load, in each process.
    with extra("data"):
        found = find_spec("sklearn")
        if found is None or found.origin is None:
            raise ImportError("the data set digits is a file of scikit-learn, which is not installed")
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(file, delimiter=","))  # (number, 64 + 1)
    images = rows[:, :-1].reshape(-1, 1, 8, 8) / 16  # (number, 1, 8, 8), in 0 to 1
    labels = rows[:, -1].long()
    rank = F.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0] - 1  # an example's number in its class
    test = rank % TEST_EVERY == TEST_EVERY - 1
    train_raw, test_raw = (
        Raw(images[part].float(), labels[part].tolist(), tuple("0123456789"), "digits") for part in (~test, test)
    )
    return to_dataset("digits", train_raw, test_raw)
