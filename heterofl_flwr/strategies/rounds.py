"""The loop over rounds: Flower's own, with evaluation every k rounds, records, callbacks and resume."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from heterofl_flwr.federation.records import check_metrics, host_log
from heterofl_flwr.strategies.asynchronous import Steps
from heterofl_flwr.strategies.budget import TRAIN_SHARE, Budget
from heterofl_flwr.transport.exchange import Costs

if TYPE_CHECKING:
    from heterofl_flwr.strategies.heterofl import HeteroFL

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds of a strategy, from the arrays of ``result`` to those it has then."""

    strategy: "HeteroFL"
    grid: Grid
    result: Result
    first_round: int
    num_rounds: int
    configs: tuple[ConfigRecord, ConfigRecord]  # what goes with each message to train, and to evaluate
    evaluate_fn: EvaluateFn | None
    steps: Steps | None = None  # where rounds do not wait

    def run(self) -> None:
        """Run the rounds; callbacks may end them early."""
        strategy, result = self.strategy, self.result
        evaluation = strategy.options.evaluation
        shown = any(callback.prints_rounds for callback in strategy.callbacks)  # by one of them
        for callback in strategy.callbacks:
            callback.on_start(self.first_round, self.num_rounds, result.arrays.to_torch_state_dict())
        if self.first_round == 1 and evaluation.due(0, self.num_rounds):
            self._evaluate_centrally(0)
        for server_round in range(self.first_round, self.num_rounds + 1):
            started = time.monotonic()
            strategy.budget = Budget(strategy.timeout)
            self._train(server_round)
            if not shown:
                host_log.info("%s", strategy.log.line())
            if self._is_due(server_round):
                self._evaluate(server_round)
            record = strategy.log
            record.seconds = time.monotonic() - started
            if isinstance(self.grid, Costs):
                record.note_costs(self.grid.take_costs())
            if (metrics := record.metrics_line()) and not shown:
                host_log.info("[ROUND %d/%d] %s", server_round, self.num_rounds, metrics)
            if self._call_back():
                break
        result.arrays = self._evaluated()
        for callback in strategy.callbacks:
            callback.on_end(result.arrays.to_torch_state_dict())

    def _is_due(self, server_round: int) -> bool:
        return self.strategy.options.evaluation.due(server_round, self.num_rounds)

    def _train(self, server_round: int) -> None:
        strategy, result = self.strategy, self.result
        if self.steps is not None:
            arrays, metrics = self.steps.run(server_round, result.arrays, self._train_seconds(server_round))
        else:
            sent = list(strategy.configure_train(server_round, result.arrays, self.configs[0], self.grid))
            strategy.open_exchange(sent)
            replies = strategy.exchange(self.grid, sent, self._train_seconds(server_round))
            arrays, metrics = strategy.aggregate_train(server_round, strategy.hear(replies, "trained", len(sent)))
        if arrays is not None:
            result.arrays = arrays
        if metrics is not None:
            result.train_metrics_clientapp[server_round] = metrics

    def _train_seconds(self, server_round: int) -> float:
        """Return how much of the time that is left of a round is for training."""
        strategy = self.strategy
        evaluates = strategy.options.sampling.fraction_evaluate and self._is_due(server_round)
        return strategy.seconds_left(TRAIN_SHARE if evaluates or strategy.chain.summing else 1.0)

    def _evaluate(self, server_round: int) -> None:
        strategy, result = self.strategy, self.result
        sent = list(strategy.configure_evaluate(server_round, result.arrays, self.configs[1], self.grid))
        strategy.open_exchange(sent)
        replies = self.grid.send_and_receive(sent, timeout=strategy.seconds_left())
        metrics = strategy.aggregate_evaluate(server_round, strategy.hear(replies, "evaluated", len(sent)))
        if metrics is not None:
            result.evaluate_metrics_clientapp[server_round] = metrics
        self._evaluate_centrally(server_round)

    def _evaluate_centrally(self, server_round: int) -> None:
        metrics = self.evaluate_fn(server_round, self._evaluated()) if self.evaluate_fn is not None else None
        check_metrics(metrics, "evaluate_fn")
        if metrics is not None:
            self.result.evaluate_metrics_serverapp[server_round] = metrics
            if server_round:
                self.strategy.log.note_central(metrics)

    def _evaluated(self) -> ArrayRecord:
        return self.strategy.evaluated_arrays(self.result.arrays)

    def _call_back(self) -> bool:
        """Call the callbacks with a round, and keep no state of it; return whether one ends the run."""
        strategy = self.strategy
        if not strategy.callbacks:
            return False
        progress = strategy.progress(self.result.arrays.to_torch_state_dict())
        # Every callback sees every round, so all are called before any of them may end the run.
        stops = [callback.on_round_end(progress) for callback in strategy.callbacks]
        return any(stops)
