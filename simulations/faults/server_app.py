"""Our own ServerApp as a SuperLink starts it, with a fault that strikes it."""

import os

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from heterofl_flwr.app.server_app import run
from heterofl_flwr.app.task import task_of
from simulations.faults.fault import Fault
from simulations.faults.grid import Watched
from simulations.faults.server import Watcher, half_written

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run HeteroFL."""
    fault = Fault.current()
    fault.note("server", os.getpid())
    with half_written(fault):
        run(Watched(grid, fault), task_of(context.run_config), [Watcher(fault)])
    fault.note("ended", fault.num_rounds)
