"""Runs of our own app on the local grid, and what they leave behind."""

from heterofl_flwr.app import server_app
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.client.state import NODE_STATES
from heterofl_flwr.grids import LocalGrid
from heterofl_flwr.report import RunFolder
from tests.federation.tiny import Keep

CLIENT_APP = "heterofl_flwr.app.client_app:app"


def run_app(config, clients, callbacks=(), **options):
    """Run the app with a run config; return its strategy."""
    with LocalGrid(CLIENT_APP, clients, run_config=config, **options) as grid:
        return server_app.run(grid, load_workload(config), callbacks)


def run_kept(folder, config, clients):
    """Run the app in a folder, where its clients keep their states; return the folder."""
    states = {NODE_STATES: str(folder / "clients")}
    run_app({**config, "run.dir": str(folder)}, clients, node_config=lambda partition: states)
    return folder


def run_rounds(config, clients, **options):
    """Run the app with a run config; return what callbacks are given after each round."""
    keep = Keep()
    run_app(config, clients, [keep], **options)
    return keep.progress


def history_of(folder):
    """Return the records of a run, but for its times."""
    return [{**one.to_json(), "seconds": 0.0} for one in RunFolder(folder).history()]
