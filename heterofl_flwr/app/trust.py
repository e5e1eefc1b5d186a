"""The option ``--trust``: permission to run users' functions that are named in the settings of a stored run."""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.user_code import allow_modules, named_modules


def add_trust(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option ``--trust`` to a parser."""
    text = "run the functions that the settings in the folder name (module:function)"
    parser.add_argument("--trust", action="store_true", help=text)


def check_trust(
    settings: Mapping[str, object], folder: Path | None, *, trusted: bool, named: Iterable[object] = ()
) -> None:
    """Allow the import of users' modules that occur in stored ``settings``.

    ``named`` contains the values of settings on the command line. Modules that occur in ``named`` need no trust. If
    ``settings`` have other modules and ``trusted`` is False, raise ``ConfigError``.
    """
    modules = named_modules(settings.values()) - named_modules(named)
    if modules and not trusted:
        functions = [f"{key}={value}" for key, value in settings.items() if named_modules([value]) & modules]
        raise ConfigError(
            f"the settings of {folder} name code ({', '.join(functions)}), which would run here: add --trust if you "
            f"know who wrote them"
        )
    allow_modules(modules)
