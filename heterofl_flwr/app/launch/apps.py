"""Flower apps: this package's own, and another one that its ``pyproject.toml`` describes."""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app.user_config import UserConfig
from flwr.common.config import flatten_dict, get_project_config

from heterofl_flwr.app.launch.request import Flat, Request
from heterofl_flwr.errors import ConfigError

SERVER_APP = "heterofl_flwr.app.server_app:app"
CLIENT_APP = "heterofl_flwr.app.client_app:app"


@dataclass(frozen=True, slots=True)
class App:
    """Where an app's two parts are, and the run config that they get."""

    server: str
    client: str
    config: Mapping[str, Flat]


def read_app(request: Request) -> App:
    """Return the app that is to be run, as Flower reads it; ``ConfigError`` for settings that it does not have."""
    if request.app is None:
        return App(SERVER_APP, CLIENT_APP, request.config)
    try:
        table = get_project_config(request.app)["tool"]["flwr"]["app"]
        config: UserConfig = flatten_dict(table.get("config"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{request.app} has no pyproject.toml that describes a Flower app: {error}") from error
    unknown = sorted(request.config.keys() - config.keys())
    if unknown:
        raise ConfigError(
            f"the app in {request.app} has no setting {', '.join(unknown)}; it has {', '.join(config) or 'none'}"
        )
    components = table["components"]
    return App(components["serverapp"], components["clientapp"], {**config, **request.config})
