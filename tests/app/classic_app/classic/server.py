"""A Strategy of the classic API whose clients have five sizes."""

from logging import getLogger

from flwr.server import ServerAppComponents, ServerConfig
from flwr.serverapp import ServerApp

from classic.client import build
from heterofl_flwr.classic import HeteroFL

logger = getLogger("flwr")


class Telling(HeteroFL):
    """Logs what a test wants to see."""

    def aggregate_fit(self, server_round, results, failures):
        rates = sorted(float(answer.metrics["rate"]) for _, answer in results)
        logger.info("classic round %d: rates %s", server_round, rates)
        return super().aggregate_fit(server_round, results, failures)

    def aggregate_evaluate(self, server_round, results, failures):
        loss, metrics = super().aggregate_evaluate(server_round, results, failures)
        logger.info("classic round %d: accuracy %.3f", server_round, metrics["local-accuracy"])
        return loss, metrics


def server_fn(context):
    strategy = Telling(build, "a1-b1-c1-d1-e1", min_available_clients=5)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=int(context.run_config["num-rounds"])))


app = ServerApp(server_fn=server_fn)
