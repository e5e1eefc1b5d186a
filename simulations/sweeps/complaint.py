"""What is wrong with a command line, in one line, where Hydra needs several."""

import re

from hydra.errors import MissingConfigException, OverrideParseException

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings import from_flat

_KEY = re.compile(r"Could not override '(?P<key>[^']+)'")


def complaint(error: Exception) -> str:
    """Return what to tell the user."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: this is no override such as key=value; {_first_line(error)}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}: found {name!r}, expected one of {', '.join(error.options)}"
    match = _KEY.match(str(error))
    if match:
        return _unknown(match["key"])
    return " ".join(str(error).split())


def _unknown(key: str) -> str:
    try:
        from_flat({key: ""})
    except ConfigError as error:
        return str(error)
    return f"{key}: the configuration has no such key"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
