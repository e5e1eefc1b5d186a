"""``heterofl app``: a folder that Flower takes as an app and that names this package's own two parts."""

import argparse
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from heterofl_flwr import __version__
from heterofl_flwr.app.cli.settings import read_assignments
from heterofl_flwr.app.launch.request import CLIENT_APP, SERVER_APP
from heterofl_flwr.compat import NEWEST_TESTED
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.runs.files import write_atomic
from heterofl_flwr.settings import DEFAULTS, Flat, from_flat, to_toml

PROJECT = """[project]
name = "{name}"
version = "{version}"
description = "Federated learning over clients of unequal size: HeteroFL and related methods"
license = {{ file = "LICENSE" }}
dependencies = ["flwr[simulation]>=1.32,<2", "heterofl-flwr[data,report]=={version}"]

[tool.flwr.app]
publisher = "{publisher}"
fab-format-version = 1
flwr-version-target = "{flower}"

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
"""
README = """# {name}

Federated learning with [Flower](https://flower.ai): one global model, trained by clients of unequal size. A client with
less memory trains a slice of the model that has fewer channels. The method is HeteroFL (Diao, Ding and Tarokh, ICLR
2021). The package heterofl-flwr, which this app installs, contains the two parts of the app.

```bash
pip install -e .
flwr run . --stream
```

`pyproject.toml` lists every setting; `heterofl settings` explains them.
"""


def run(args: argparse.Namespace) -> int:
    """Write the app."""
    folder, given = args.folder, read_assignments(args.set)
    from_flat(given)  # raises what is wrong; the file has the values as given, as auto follows data.name in each run
    write_app(folder, {**DEFAULTS, **given}, name=args.name, publisher=args.publisher)
    print(f"{folder}: start it with 'flwr run {folder}', bundle it with 'flwr build --app {folder}'")
    return 0


def write_app(folder: Path, config: Mapping[str, Flat], *, name: str = "heterofl", publisher: str = "heterofl") -> None:
    """Write an app of this package's parts: a ``pyproject.toml``, a README and the license."""
    if any((folder / file).exists() for file in ("pyproject.toml", "README.md", "LICENSE")):
        raise ConfigError(f"{folder} has a pyproject.toml, a README.md or a LICENSE already: choose another folder")
    if not re.fullmatch(r"[a-zA-Z]([a-zA-Z\d-]{0,30}[a-zA-Z\d])?", name, re.ASCII):  # what Flower and pip accept
        raise ConfigError(
            f"--name is {name!r}; expected a letter, then up to 31 letters, digits and '-', the last no '-'"
        )
    if not re.fullmatch(r"[\w.-]+", publisher, re.ASCII):
        raise ConfigError(f"--publisher is {publisher!r}; expected letters, digits, '.', '_' and '-'")
    values = {"name": name, "version": __version__, "publisher": publisher, "flower": ".".join(map(str, NEWEST_TESTED))}
    project = PROJECT.format(**values, client=CLIENT_APP, server=SERVER_APP)
    for file, text in {
        "pyproject.toml": project + to_toml(config),
        "README.md": README.format(name=name),
        "LICENSE": metadata.distribution("heterofl-flwr").read_text("licenses/LICENSE") or "",
    }.items():
        write_atomic(folder / file, text.encode())
