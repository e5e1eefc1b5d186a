"""The loop over rounds: Flower's own, with evaluation every k rounds, records, callbacks and resume."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from heterofl_flwr.federation.records import Progress, RoundRecord, host_log

if TYPE_CHECKING:
    from heterofl_flwr.strategies.heterofl import HeteroFL

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True, slots=True)
class Rounds:
    """Which rounds to run, and what goes with each message."""

    first_round: int
    num_rounds: int
    timeout: float
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: EvaluateFn | None


def run_rounds(strategy: "HeteroFL", grid: Grid, result: Result, rounds: Rounds) -> None:
    """Run the rounds, from the arrays of ``result`` to those it has then; callbacks may end them early."""
    for callback in strategy.callbacks:
        callback.on_start(rounds.first_round, rounds.num_rounds, result.arrays.to_torch_state_dict())
    if rounds.first_round == 1 and strategy.options.evaluation.due(0, rounds.num_rounds):
        _evaluate_centrally(result, rounds, 0)
    for server_round in range(rounds.first_round, rounds.num_rounds + 1):
        started = time.monotonic()
        _train(strategy, grid, result, rounds, server_round)
        if strategy.options.evaluation.due(server_round, rounds.num_rounds):
            _evaluate(strategy, grid, result, rounds, server_round)
        record = strategy.log.record(server_round, time.monotonic() - started)
        record = replace(record, **getattr(grid, "costs", {}))  # which a grid with simulated devices has
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in {**record.train, **record.evaluate}.items())
        if metrics and not strategy.prints_rounds:
            host_log.info("[ROUND %d/%d] %s", server_round, rounds.num_rounds, metrics)
        if _call_back(strategy, record, result.arrays, rounds.num_rounds):
            break
    for callback in strategy.callbacks:
        callback.on_end(result.arrays.to_torch_state_dict())


def _call_back(strategy: "HeteroFL", record: RoundRecord, arrays: ArrayRecord, num_rounds: int) -> bool:
    """Call the callbacks with a round, without keeping its state for the next one; return whether one ends the run."""
    if not strategy.callbacks:
        return False
    progress = Progress(
        record=record,
        state=arrays.to_torch_state_dict(),
        moments=strategy.moment_tensors(),
        optimizer=dict(strategy.federation.optimizer_state),
        num_rounds=num_rounds,
    )
    # Every callback sees every round, so all are called before any of them may end the run.
    stops = [callback.on_round_end(progress) for callback in strategy.callbacks]
    return any(stops)


def _train(strategy: "HeteroFL", grid: Grid, result: Result, rounds: Rounds, server_round: int) -> None:
    sent = strategy.configure_train(server_round, result.arrays, rounds.train_config, grid)
    arrays, metrics = strategy.aggregate_train(server_round, strategy.exchange(grid, sent, rounds.timeout))
    del sent
    if arrays is not None:
        result.arrays = arrays
    if metrics is not None:
        result.train_metrics_clientapp[server_round] = metrics


def _evaluate(strategy: "HeteroFL", grid: Grid, result: Result, rounds: Rounds, server_round: int) -> None:
    messages = strategy.configure_evaluate(server_round, result.arrays, rounds.evaluate_config, grid)
    metrics = strategy.aggregate_evaluate(server_round, grid.send_and_receive(messages, timeout=rounds.timeout))
    if metrics is not None:
        result.evaluate_metrics_clientapp[server_round] = metrics
    central = _evaluate_centrally(result, rounds, server_round)
    numbers = {key: float(value) for key, value in central.items() if isinstance(value, int | float)}
    strategy.log.note_central(numbers)


def _evaluate_centrally(result: Result, rounds: Rounds, server_round: int) -> MetricRecord:
    metrics = rounds.evaluate_fn(server_round, result.arrays) if rounds.evaluate_fn is not None else None
    if metrics is not None:
        result.evaluate_metrics_serverapp[server_round] = metrics
    return metrics or MetricRecord()
