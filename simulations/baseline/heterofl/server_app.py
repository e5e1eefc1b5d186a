"""heterofl: A Flower Baseline."""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from heterofl.strategy import make_strategy

# Create ServerApp
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run entry point for the ServerApp."""
    strategy = make_strategy(context.run_config)
    num_rounds = int(context.run_config["num-server-rounds"])
    result = strategy.start(grid=grid, num_rounds=num_rounds)
    for server_round, metrics in result.evaluate_metrics_clientapp.items():
        print(f"round {server_round}: global accuracy {metrics['accuracy']:.2%}")
    torch.save(result.arrays.to_torch_state_dict(), "final_model.pt")
