"""The same apps in this machine's processes, without Ray and without a SuperLink."""

import sys
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app

from heterofl_flwr.app.launch.bundle import read_app
from heterofl_flwr.app.launch.gpus import cores
from heterofl_flwr.app.launch.request import Request
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids import LocalGrid


def run_local(request: Request) -> None:
    """Run an app on a ``LocalGrid``; what the ServerApp raises is raised here."""
    app = read_app(request)
    # As on Ray, functions that settings name may lie in the folder from which the command was called.
    sys.path.insert(0, str(request.app or Path.cwd()))
    processes = request.share.clients(cores(), 0)
    with LocalGrid(app.client, request.clients, processes=processes, run_config=app.config) as grid:
        server: ServerApp = load_app(app.server, ConfigError, request.app)
        server(grid, Context(grid.run.run_id, 0, {}, RecordDict(), dict(app.config)))
