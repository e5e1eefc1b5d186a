"""Find a data set by name: bundled, offline, in a folder, from a user's function, or on the hub.

What reads files is loaded where it is needed: it brings libraries that a client with other data can do without.
"""

import os
import threading
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from heterofl_flwr.data.bundled import digits
from heterofl_flwr.data.dataset import Dataset, Normal
from heterofl_flwr.data.facts import KNOWN
from heterofl_flwr.data.function import from_function
from heterofl_flwr.data.raw import to_dataset
from heterofl_flwr.data.text import to_text
from heterofl_flwr.errors import DataError

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
        from heterofl_flwr.data.hub import ask_hub

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
    from heterofl_flwr.data.hub import ask_hub_for_lines

    owner_and_name, _, configuration = hub_name.rpartition("/")
    return ask_hub_for_lines(owner_and_name, configuration)


def _copy(root: str, hub_name: str) -> Path:
    remedy = f"expected a copy of the hub's {hub_name} there; without root and {ROOT_VARIABLE} the hub is asked"
    return _folder(Path(root) / hub_name, remedy)


def _folder(path: Path, remedy: str) -> Path:
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: {remedy}")
    return path
