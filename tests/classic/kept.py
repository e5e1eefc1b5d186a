"""The strategy of the classic API, keeping what it returned."""

from heterofl_flwr.classic import HeteroFL


class Kept(HeteroFL):
    """Keeps what the server got last."""

    def aggregate_fit(self, server_round, results, failures):
        self.last, metrics = super().aggregate_fit(server_round, results, failures)
        return self.last, metrics

    def aggregate_evaluate(self, server_round, results, failures):
        self.loss, self.metrics = super().aggregate_evaluate(server_round, results, failures)
        return self.loss, self.metrics
