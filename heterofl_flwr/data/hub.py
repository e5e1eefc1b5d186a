"""Ask the hub, through Hugging Face's ``datasets``."""

from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from heterofl_flwr.data.raw import Raw
from heterofl_flwr.data.tables import read_table
from heterofl_flwr.errors import DataError


def ask_hub(name: str) -> tuple[Raw, Raw]:
    """Return the train and test splits of a data set of the hub; ``datasets`` keeps its own copy of the files."""
    splits = _load(name)
    train, test = (read_table(_arrow(splits[part]), f"{name}, split {part}") for part in ("train", "test"))
    return train, test


def ask_hub_for_lines(name: str, configuration: str) -> tuple[list[str], list[str]]:
    """Return the texts of the train and test splits of a data set of the hub."""
    splits = _load(name, configuration)
    return list(splits["train"]["text"]), list(splits["test"]["text"])


def _load(name: str, *configuration: str) -> Any:
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
