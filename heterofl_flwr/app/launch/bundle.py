"""A Flower app that is a single file, for the package that is installed.

``flwr run`` takes a folder with a ``pyproject.toml`` and sends the code in it to the SuperLink. Our code is installed
where the clients run, so a ``pyproject.toml`` that names it is enough; the run's settings are its defaults.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from heterofl_flwr import __version__
from heterofl_flwr.app.launch.request import Flat, Request
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings import flatten, to_toml

SERVER_APP = "heterofl_flwr.app.server_app:app"
CLIENT_APP = "heterofl_flwr.app.client_app:app"
NAME = "heterofl-run"  # Flower takes letters, digits and hyphens

_PROJECT = f"""[project]
name = "{NAME}"
version = "{__version__}"
description = "A run of heterofl-flwr"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "heterofl"

[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "{CLIENT_APP}"

[tool.flwr.app.config]
"""


@dataclass(frozen=True, slots=True)
class App:
    """Where an app's two parts are, and the run config that they get."""

    server: str
    client: str
    config: Mapping[str, Flat]


def read_app(request: Request) -> App:
    """Return the app that is to be run; refuse settings that it has not."""
    if request.app is None:
        return App(SERVER_APP, CLIENT_APP, request.config)
    path = request.app / "pyproject.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        server, client = str(table["components"]["serverapp"]), str(table["components"]["clientapp"])
    except (OSError, KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} describes no Flower app: {error!r}") from error
    config = flatten(table.get("config", {}))
    unknown = sorted(request.config.keys() - config.keys())
    if unknown:
        raise ConfigError(f"{path} has no setting {', '.join(unknown)}; it has {', '.join(config) or 'none'}")
    return App(server, client, {**config, **request.config})  # type: ignore[dict-item]


def write_app(parent: Path, config: Mapping[str, Flat]) -> Path:
    """Write the app of a run and return its folder."""
    folder = parent / NAME
    folder.mkdir()
    (folder / "pyproject.toml").write_text(_PROJECT + to_toml(config), encoding="utf-8")
    return folder


def write_overrides(parent: Path, config: Mapping[str, Flat]) -> Path:
    """Write what a run changes of another app's config; a file, because ``-c`` given twice forgets whole tables."""
    path = parent / "overrides.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return path
