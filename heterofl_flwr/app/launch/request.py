"""What is to be run, and with how much of the machine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import UserConfig

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.settings.flat import flatten
from heterofl_flwr.settings.value_types import Flat
from heterofl_flwr.transport.compat import get_project_config

CLUSTER = "RAY_ADDRESS"
"""The environment variable that names a Ray cluster; what its machines have is not known here."""


SERVER_APP = "heterofl_flwr.app.server_app:app"
CLIENT_APP = "heterofl_flwr.app.client_app:app"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A run that is to be made; the last three say what each client gets of the machine where Ray's actors run them."""

    config: Mapping[str, Flat]  # all settings of the app
    out: Path  # the run's folder
    clients: int  # number of virtual clients
    app: Path | None = None  # folder of another Flower app; None for this package's own
    server: str = SERVER_APP  # where the app's two parts are
    client: str = CLIENT_APP
    grid: str = "local"  # what runs the clients: ``local``, this process; ``ray``, Ray's actors
    cpus: int = 1  # processor cores
    gpus: float | None = None  # a share of a GPU, or a number of whole ones; None where nobody says it
    parallel: int | None = None  # how many clients may run at once; None for as many as the cores and GPUs allow

    @property
    def gpu_share(self) -> float:
        """What each client gets of a GPU: where nobody says it one, or a share where more clients may run at once."""
        number = torch.cuda.device_count()
        if self.gpus is not None or self.app is not None or self.config["engine.device"] == "cpu" or not number:
            return self.gpus or 0.0
        return math.floor(1e4 / math.ceil((self.parallel or number) / number)) / 1e4


def read_app(folder: Path, given: Mapping[str, Flat], **how: Any) -> Request:
    """Return the request for another app, as Flower reads it; ``ConfigError`` for settings that it does not have."""
    try:
        table = get_project_config(folder)["tool"]["flwr"]["app"]
        config: UserConfig = flatten(table.get("config", {}))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} has no pyproject.toml that describes a Flower app: {error}") from error
    if unknown := sorted(given.keys() - config.keys()):
        raise ConfigError(
            f"the app in {folder} has no setting {', '.join(unknown)}; it has {', '.join(config) or 'none'}"
        )
    parts = table["components"]
    return Request(config={**config, **given}, app=folder, server=parts["serverapp"], client=parts["clientapp"], **how)
