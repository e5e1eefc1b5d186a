"""``RoundLoop``, the loop over the rounds of a run."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from heterofl_flwr.federation.callbacks import RoundCallback, is_true, name_callbacks, read_state
from heterofl_flwr.federation.round_record import RoundRecord, check_metrics, host_log
from heterofl_flwr.nn.static_norm import refusing_unmeasured
from heterofl_flwr.strategies.asynchronous import Steps
from heterofl_flwr.strategies.time_budget import TRAIN_SHARE
from heterofl_flwr.transport.relay import Costs

if TYPE_CHECKING:
    from heterofl_flwr.strategies.start import FederationStrategy

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
ShouldStop = Callable[[int, Result], bool]


@dataclass(frozen=True, slots=True)
class RoundLoop:
    """The loop over rounds of one call of ``start``."""

    strategy: "FederationStrategy"
    grid: Grid
    result: Result
    configs: tuple[ConfigRecord, ConfigRecord]  # train_config and evaluate_config
    evaluate_fn: EvaluateFn | None
    should_stop: ShouldStop | None
    steps: Steps | None  # for asynchronous training

    def run(self, first_round: int) -> None:
        """Run the rounds, and call the callbacks. A callback or ``should_stop`` may end the run early."""
        try:
            self._run(first_round)
        except BaseException:
            for callback in self.strategy.callbacks:
                try:
                    callback.on_error()
                except Exception:
                    host_log.exception("%s.on_error failed", type(callback).__name__)
            raise
        finally:
            if self.steps is not None:
                self.steps.close()

    def _run(self, first_round: int) -> None:
        strategy, result, num_rounds = self.strategy, self.result, self.strategy.num_rounds
        quiet = any(callback.prints_rounds for callback in strategy.callbacks)
        self._start_callbacks(first_round)
        if first_round == 1 and self._is_due(0):
            self._evaluate_centrally(0)
        for server_round in range(first_round, num_rounds + 1):
            started = time.monotonic()
            strategy.messages_of(server_round, timed=True)
            strategy.log = RoundRecord.empty(server_round)  # stays if a subclass opens no round
            self._train(server_round)
            if not quiet:
                host_log.info("%s", strategy.log.line())
            if self._is_due(server_round):
                self._evaluate(server_round)
            strategy.end_round()
            record = strategy.log
            record.seconds = time.monotonic() - started
            if isinstance(self.grid, Costs):
                costs = self.grid.take_costs()
                record.simulated_seconds, record.joules = costs["simulated_seconds"], costs["joules"]
            if not quiet:
                record.log_metrics(num_rounds)
            if self._call_back():
                break
        result.arrays = strategy.evaluated_arrays(result.arrays)
        for callback in strategy.callbacks:
            callback.on_end(result.arrays.to_torch_state_dict())

    def _start_callbacks(self, first_round: int) -> None:
        strategy, state = self.strategy, self.result.arrays.to_torch_state_dict()
        if first_round > 1:
            progress = strategy.progress(state)
            for callback in strategy.callbacks:
                callback.on_resume(progress)
        for callback in strategy.callbacks:
            callback.on_start(first_round, strategy.num_rounds, state)

    def _is_due(self, server_round: int) -> bool:
        return self.strategy.options.evaluation.due(server_round, self.strategy.num_rounds)

    def _train(self, server_round: int) -> None:
        strategy, result = self.strategy, self.result
        evaluates = strategy.options.sampling.fraction_evaluate and self._is_due(server_round)
        share = TRAIN_SHARE if evaluates or strategy.chain.summing else 1.0
        if self.steps is not None:
            arrays, metrics = self.steps.run(server_round, result.arrays, share)
        else:
            sent = list(strategy.configure_train(server_round, result.arrays, self.configs[0], self.grid))
            replies = self._send(server_round, sent, "trained", share)
            arrays, metrics = strategy.aggregate_train(server_round, replies)
        if arrays is not None:
            result.arrays = arrays
        if metrics is not None:
            result.train_metrics_clientapp[server_round] = metrics
            strategy.log.note_changed(strategy.log.train, metrics)

    def _evaluate(self, server_round: int) -> None:
        strategy, result = self.strategy, self.result
        sent = list(strategy.configure_evaluate(server_round, result.arrays, self.configs[1], self.grid))
        metrics = strategy.aggregate_evaluate(server_round, self._send(server_round, sent, "evaluated"))
        if metrics is not None:
            result.evaluate_metrics_clientapp[server_round] = metrics
            strategy.log.note_changed(strategy.log.evaluate, metrics)
        self._evaluate_centrally(server_round)

    def _send(
        self, server_round: int, sent: list[Message], what: str, train_share: float | None = None
    ) -> Iterable[Message]:
        strategy, opened = self.strategy, self.strategy.messages_of(server_round)
        opened.restrict(sent)
        if train_share is None:
            replies = self.grid.send_and_receive(sent, timeout=opened.budget.remaining())
        else:
            replies = strategy.exchange(self.grid, sent, opened.budget.remaining(train_share))
        return opened.watch(replies, what, len(sent), strategy.callbacks)

    def _evaluate_centrally(self, server_round: int) -> None:
        if self.evaluate_fn is None:
            return
        with refusing_unmeasured("evaluate_fn"):
            metrics = self.evaluate_fn(server_round, self.strategy.evaluated_arrays(self.result.arrays))
        check_metrics(metrics, "evaluate_fn")
        if metrics is not None:
            self.result.evaluate_metrics_serverapp[server_round] = metrics
            if server_round:
                self.strategy.log.note_central(metrics)

    def _call_back(self) -> bool:
        """Call the callbacks and ``should_stop``; return True if one of them ends the run."""
        strategy, server_round, names = self.strategy, self.strategy.log.server_round, list[str]()
        if strategy.callbacks:
            progress = strategy.progress(self.result.arrays.to_torch_state_dict())
            # All callbacks are called for every round, also if one of them ends the run.
            # Callbacks with state come first, so that a later one can write the new state to disk.
            named, default = name_callbacks(strategy.callbacks), RoundCallback.state
            stateful = {name: callback for name, callback in named.items() if type(callback).state is not default}
            rest = {name: callback for name, callback in named.items() if name not in stateful}
            names += [name for name, callback in stateful.items() if is_true(callback.on_round_end(progress))]
            progress = replace(progress, callbacks={name: read_state(name, each) for name, each in stateful.items()})
            names += [name for name, callback in rest.items() if is_true(callback.on_round_end(progress))]
        if self.should_stop is not None and is_true(self.should_stop(server_round, self.result)):
            names.append("should_stop")
        if names:
            host_log.info("%s ends the run after round %d", names[0], server_round)
        return bool(names)
