"""``Request``: a run to start."""

import argparse
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import UserConfig

from heterofl_flwr.app.run import HOW
from heterofl_flwr.app.trust import check_trust
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.user_code import allow_modules, named_modules
from heterofl_flwr.data.known import short_name
from heterofl_flwr.data.load import absolute_paths
from heterofl_flwr.report import RunFolder
from heterofl_flwr.runs.folder import new_path
from heterofl_flwr.settings.auto_values import CLIENTS
from heterofl_flwr.settings.renamed import from_stored
from heterofl_flwr.settings.validate import SPECS, flatten, from_flat, read_assignments, read_config, to_flat
from heterofl_flwr.settings.value_types import Flat
from heterofl_flwr.transport.compat import get_project_config

CLUSTER = "RAY_ADDRESS"
"""Environment variable with the address of a Ray cluster."""

WINDOW = 64
"""Default of ``engine.window`` in ``heterofl run``. It limits the server's memory."""

SERVER_APP = "heterofl_flwr.app.server_app:app"
CLIENT_APP = "heterofl_flwr.app.client_app:app"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Settings, folder and resources of a run. ``cpus``, ``gpus`` and ``parallel`` need ``grid="ray"``."""

    config: Mapping[str, Flat]  # all settings of the app
    out: Path  # the run's folder
    clients: int  # number of virtual clients
    app: Path | None = None  # folder of another Flower app; None for this package's own
    server: str = SERVER_APP  # import paths of the ServerApp and the ClientApp
    client: str = CLIENT_APP
    grid: str = "local"  # ``local``: clients run in this process; ``ray``: in Ray actors
    cpus: int = 1  # processor cores for each client
    gpus: float | None = None  # fraction of a GPU for each client, or a number of GPUs; None: see ``gpus_per_client``
    parallel: int | None = None  # maximum number of clients at once; None: as many as the cores and GPUs allow


def read_app(folder: Path, changes: Mapping[str, Flat], **how: Any) -> Request:
    """Return the request to run the Flower app that the ``pyproject.toml`` in ``folder`` describes.

    ``changes`` has values of settings, which replace those of the app. ``how`` has further fields of ``Request``.
    """
    try:
        table = get_project_config(folder)["tool"]["flwr"]["app"]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} has no pyproject.toml that describes a Flower app: {error}") from error
    config: UserConfig = flatten(table.get("config", {}))
    if unknown := sorted(changes.keys() - config.keys()):
        raise ConfigError(
            f"the app in {folder} has no setting {', '.join(unknown)}; it has {', '.join(config) or 'none'}"
        )
    # False with a capital is a text, which is true.
    if texts := [key for key, value in changes.items() if isinstance(config[key], bool) and isinstance(value, str)]:
        faults = ", ".join(f"{key}: found {changes[key]!r}" for key in texts)
        raise ConfigError(f"{faults}; expected true or false, as in the app in {folder}")
    parts, config = table["components"], {**config, **changes}
    if parts["serverapp"] == SERVER_APP and not config.get("run.dir"):
        config["run.dir"] = str(how["out"])  # else this package's own app writes no results on a grid of this package
    return Request(config=config, app=folder, server=parts["serverapp"], client=parts["clientapp"], **how)


def build_request(args: argparse.Namespace) -> Request:
    """Return the request that parsed arguments describe; raise ``ConfigError`` if they are invalid."""
    if args.resume and args.app:
        raise ConfigError(
            f"--resume is for this package's own app, and --app is {args.app}: start it with --app alone, and let its "
            "ServerApp load the checkpoint (RunFolder.load_checkpoint)"
        )
    if args.grid == "local" and (args.cpus, args.parallel or 1, args.gpus or 1) != (1, 1, 1):
        raise ConfigError(
            "--cpus, --parallel and shares of a GPU are for --grid ray; --grid local runs the clients in this process"
        )
    on_ray = CLUSTER in os.environ or args.gpus or (args.cpus, args.parallel or 1) != (1, 1)
    how = {name: getattr(args, name) for name in HOW} | {"grid": args.grid or ("ray" if on_ray else "local")}
    now = {**(read_config(args.config) if args.config else {}), **read_assignments(args.set, () if args.app else SPECS)}
    if args.app:
        app = args.app.resolve()
        return read_app(app, now, out=_choose_folder(args, app.name), clients=args.clients or 2, **how)
    for key, option in (("run.dir", "--out"), ("run.resume", "--resume")):
        if now.get(key):
            raise ConfigError(f"{key} is {now[key]!r}: leave the setting out, and use the option {option} FOLDER")
    resumes = args.resume is not None
    stored = to_flat(from_stored(RunFolder(args.resume).settings())) if resumes else {}
    allow_modules(named_modules(now.values()))
    check_trust(stored, args.resume, trusted=args.trust, named=now.values())
    assigned = {**stored, **now}
    settings = from_flat(assigned)
    data = short_name(settings.data.name)
    out = _choose_folder(args, data)
    if not resumes and RunFolder(out).has_run:
        path = shlex.quote(str(out))
        raise ConfigError(f"{out} holds a run already: go on with it (--resume {path}), or choose another folder")
    clients = _count_clients(args.clients, out, resumes, CLIENTS.get(data, 100))
    name, root = absolute_paths(settings.data.name, settings.data.root)
    config = {**to_flat(settings), "data.name": name, "data.root": root, "run.dir": str(out), "run.resume": resumes}
    if "sample.min-nodes" not in (now if args.clients else assigned):
        config["sample.min-nodes"] = clients  # wait for all, because Flower starts the server before the nodes
    if "engine.window" not in assigned:
        config["engine.window"] = WINDOW
    if args.gpus is not None and "engine.device" not in now:
        config["engine.device"] = "auto" if args.gpus else "cpu"
    return Request(config=config, out=out, clients=clients, **how)


def _count_clients(requested: int | None, out: Path, resumes: bool, usual: int) -> int:
    if not resumes:
        return requested or usual
    has = RunFolder(out).about().get("clients") or requested
    if has is None:
        raise ConfigError(f"the run in {out} does not record its number of clients: give the number with --clients")
    if requested not in (has, None):
        raise ConfigError(f"--clients is {requested}, but the run in {out} has {has}; expected {has}, or no --clients")
    return has


def _choose_folder(args: argparse.Namespace, name: str) -> Path:
    chosen: Path = args.resume or args.out or new_path(name)
    return chosen.resolve()
