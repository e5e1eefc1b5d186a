"""Every setting of a run: ``from_flat`` reads a run config, ``to_flat`` writes one."""

from heterofl_flwr.data.known import short_name
from heterofl_flwr.settings.flat import (
    DEFAULTS,
    SPECS,
    accepts,
    flatten,
    from_flat,
    from_stored,
    to_flat,
    to_toml,
)
from heterofl_flwr.settings.groups import Settings
from heterofl_flwr.settings.presets import CLIENTS, PRESETS, model_options, preset
from heterofl_flwr.settings.types import AUTO, Flat

__all__ = [
    "AUTO",
    "CLIENTS",
    "DEFAULTS",
    "PRESETS",
    "SPECS",
    "Flat",
    "Settings",
    "accepts",
    "flatten",
    "from_flat",
    "from_stored",
    "model_options",
    "preset",
    "short_name",
    "to_flat",
    "to_toml",
]
