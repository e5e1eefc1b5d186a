"""Loading of data sets by name."""

import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from heterofl_flwr.common.errors import DataError, extra
from heterofl_flwr.common.user_code import load_function
from heterofl_flwr.data.convert import Raw, to_dataset
from heterofl_flwr.data.dataset import Dataset, Split
from heterofl_flwr.data.known import SOURCES, Columns, Source, short_name
from heterofl_flwr.data.shared import find, share

ROOT_VARIABLE = "HETEROFL_DATA"
"""Environment variable with the default of the argument ``root``."""

_EXPECTED = "expected a Dataset or ((train inputs, train targets), (test inputs, test targets))"
_lock = threading.RLock()  # a user's function may load another data set


def load_dataset(
    name: str, root: str | os.PathLike[str] | None = None, *, label: str = "", owner: str | None = None
) -> Dataset:
    """Return the data set with this name.

    The process keeps the last four data sets, so that later calls return the same object.

    Parameters
    ----------
    name : str
        One of four forms:
        ``digits``, ``mnist``, ``cifar10``, ``cifar100``, ``femnist`` or ``wikitext2``;
        ``user/set`` on the Hugging Face hub, with an image and a label column, or with a column ``text``;
        a folder with ``train/<class>/*.png``, ``train.csv`` or ``train*.parquet``, and the same for ``test``;
        ``module:function``, which returns a ``Dataset`` or ``((x, y), (x, y))`` for train and test.
        See ``docs/howto/data.md``.
    root : str | os.PathLike[str] | None
        A folder with copies of hub data sets, such as ``<root>/ylecun/mnist/...``. Default: the environment variable
        ``HETEROFL_DATA``. Without either, data sets are loaded from the hub.
    label : str
        Column with the classes; inferred by default.
    owner : str | None
        Column with each example's owner. ``""``: the default column of a short name such as ``femnist``. None: owners
        are not read.

    Raises
    ------
    DataError
        If there is no such data set, or it cannot be read.
    """
    with _lock:  # concurrent calls must not read twice
        return _load(*absolute_paths(name, root), Columns(label, owner))


def shared_dataset(
    name: str, root: str | os.PathLike[str] | None = None, *, label: str = "", owner: str | None = None
) -> AbstractContextManager[None]:
    """Return a context manager; processes started within it share the memory of the data set.

    Data of a user's function are not shared.
    """
    if _is_function(name):
        return nullcontext()
    return share(
        load_dataset(name, root, label=label, owner=owner), (*absolute_paths(name, root), Columns(label, owner))
    )


def absolute_paths(name: str, root: str | os.PathLike[str] | None) -> tuple[str, str]:
    """Return ``name`` and ``root`` as text, with folders as absolute paths.

    ``root`` defaults to the environment variable ``HETEROFL_DATA``, or to "" if this is not set. A short name, and the
    name of a folder in ``root``, stay the same, even if the current folder has a folder of this name.
    """
    root, folder = root or os.environ.get(ROOT_VARIABLE) or "", os.path.realpath(os.path.expanduser(name))
    root = os.path.realpath(os.path.expanduser(root)) if root else ""
    is_known = short_name(name) in SOURCES or (root and os.path.isdir(os.path.join(root, name)))
    is_folder = name.startswith((".", "~")) or (not is_known and os.path.isdir(folder))
    return folder if is_folder else name, root


def _is_function(name: str) -> bool:
    return ":" in name and "/" not in name


@lru_cache(maxsize=4)
def _load(name: str, root: str, columns: Columns) -> Dataset:
    if (shared := find((name, root, columns))) is not None:
        return shared
    if (columns.label or columns.owner) and (name == "digits" or _is_function(name)):
        column = f"data.label={columns.label!r}" if columns.label else f"{columns.owner!r} as the column of owners"
        raise DataError(f"{name} has no columns to choose from: found {column}, expected ''")
    if name == "digits":
        return to_dataset(name, _digits(), None)
    if _is_function(name):
        return _from_function(name)
    if short_name(name) not in SOURCES and (file := Path(name).expanduser()).is_file():
        raise DataError(f"{name} is a file; expected the name of its folder, {file.absolute().parent}")
    source = SOURCES.get(short_name(name), Source(name))
    if "/" not in source.path and not (root and (Path(root) / source.path).is_dir()):
        near = get_close_matches(name, SOURCES, n=1)
        hint = f" did you mean {near[0]}?" if near else ""
        raise DataError(
            f"there is no data set {name!r};{hint} expected one of {', '.join(SOURCES)}, user/set of the hub, "
            "a folder, or module:function"
        )
    with extra("data"):
        from heterofl_flwr.data.folder import read
    return read(name, _find_folder(root, source.path), source, source.fill(columns))


def _find_folder(root: str, hub_name: str) -> Path | None:
    path, remedy = Path(hub_name), "name another one"
    if not path.is_absolute():
        if not root:
            return None
        path = Path(root) / hub_name
        remedy = f"expected a copy of the hub's {hub_name} there; without root and {ROOT_VARIABLE} the hub is asked"
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: {remedy}")
    return path


def _from_function(name: str) -> Dataset:
    """Call the user's function, and return its data set.

    If the function returns (train, test), each a pair (inputs, targets), make a ``Dataset``. Its number of classes is
    the largest target plus one.
    """
    made = load_function(name, "the data set", DataError)()
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
    if not inputs.is_complex():  # which Split refuses
        is_number = inputs.is_floating_point() or inputs.dtype in (torch.uint8, torch.bool)
        inputs = inputs.to(torch.float32 if is_number else torch.int64)
    try:
        return Split(inputs, targets.to(torch.int64))
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _digits() -> Raw:
    # Not load_digits(), which does the same: importing scikit-learn takes more than a second in each process.
    with extra("data"):
        digits = find_spec("sklearn")
        if digits is None or digits.origin is None:
            raise ImportError("the data set digits is a file of scikit-learn, which is not installed")
    file = Path(digits.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(file, delimiter=","))  # (number, 64 + 1)
    images = rows[:, :-1].reshape(-1, 1, 8, 8) / 16  # (number, 1, 8, 8), in 0 to 1
    return Raw(images.float(), rows[:, -1].int().tolist(), tuple("0123456789"), "digits")
