"""The server: HeteroFL as a strategy of Flower's Message API."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from heterofl_flwr import HeteroFL
from heterofl_flwr.report import Console
from sizes.model import build

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, and print a line for each."""
    config = context.run_config
    nodes = int(config["min-available-nodes"])
    strategy = HeteroFL(build, str(config["mix"]), min_available_nodes=nodes, callbacks=[Console()])
    strategy.start(grid, num_rounds=int(config["num-server-rounds"]))
