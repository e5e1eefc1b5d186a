"""Renamed and removed settings, for reading the settings of stored runs."""

import math
from collections.abc import Mapping
from types import MappingProxyType

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.validate import SPECS, from_flat
from heterofl_flwr.settings.value_types import Flat

RENAMED: Mapping[str, str] = MappingProxyType({"server.choose": "server.slice-rule"})
"""Current key of each renamed setting, by its earlier key; used for stored runs only."""

REMOVED: Mapping[str, tuple[Flat, ...]] = {
    "train.factor": (0.1,),
    "train.precision": ("float32",),
    "distill.direction": ("forward",),
    "distill.projection": ("gem",),
    "data.test-share": (0.2,),
    "server.max-refusals": (0,),
    "server.max-examples-ratio": (0.0, 10.0),  # it changed only means of metrics
    "run.patience": (0,),
    "evaluate.moments-merge": ("auto",),
}
"""Removed settings of earlier versions, each with the values that had no effect."""


def first_names(settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings under the keys of the first version."""
    # The digest in a job's name has these keys, so that renaming a setting does not change it.
    names = {new: old for old, new in RENAMED.items()}
    return {names.get(key, key): value for key, value in settings.items()}


def current_names(stored: Mapping[str, object]) -> dict[str, object]:
    """Return stored settings under their current keys, without removed settings that had no effect (``REMOVED``)."""
    return {RENAMED.get(key, key): value for key, value in stored.items() if value not in REMOVED.get(key, ())}


def from_stored(mapping: Mapping[str, object]) -> Settings:
    """Return the settings of a stored run; raise ``ConfigError`` for unknown keys."""
    mapping = current_names(mapping)
    if unknown := [key for key in mapping if key not in SPECS]:
        raise ConfigError(
            f"the run was made by another app or version, whose settings {', '.join(unknown)} are not known here: use "
            f"the code that made the run (its settings.json has the commit) or, for an app of your own, export_model"
        )
    # JSON has no infinity, so sample.wait=inf is stored as text.
    return from_flat(
        {key: math.inf if (key, value) == ("sample.wait", "inf") else value for key, value in mapping.items()}
    )
