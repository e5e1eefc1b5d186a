"""``FederationStrategy``, the base class of the strategies, with its loop over rounds."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from heterofl_flwr.common.errors import ConfigError, ShapeError, counted, listed
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.federation.callbacks import Progress, RoundCallback, RunState, is_true, name_callbacks, read_state
from heterofl_flwr.federation.round import Round
from heterofl_flwr.federation.round_record import RoundRecord, check_metrics, host_log
from heterofl_flwr.federation.start_summary import log_summary
from heterofl_flwr.nn.static_norm import refusing_unmeasured
from heterofl_flwr.stages.client_stage import State
from heterofl_flwr.strategies.arguments import check_arguments
from heterofl_flwr.strategies.asynchronous import Steps
from heterofl_flwr.strategies.evaluate_hooks import EvaluationHooks
from heterofl_flwr.strategies.time_budget import TRAIN_SHARE
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.arrays import ENTRY_BYTES, moment_tensors, moments_by_rate, pack_tensors
from heterofl_flwr.transport.exchange import exchange
from heterofl_flwr.transport.relay import Costs
from heterofl_flwr.transport.size_guard import JSON_GROWTH, guard

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
ShouldStop = Callable[[int, Result], bool]

NAME_BYTES = 2048
"""Upper bound on the bytes of a parameter's name, shape and header in a reply."""

OTHER_BYTES = 1 << 20
"""Upper bound on the bytes of metrics, labels and moments in a reply."""


class FederationStrategy(EvaluationHooks):
    """Base class of the strategies: Flower's ``start``, with callbacks, resume and asynchronous steps."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        should_stop: ShouldStop | None = None,
        resume: RunState | None = None,
    ) -> Result:
        """Run the rounds, as Flower's ``Strategy.start``.

        Parameters
        ----------
        grid, num_rounds, timeout, train_config, evaluate_config
            As in Flower's ``Strategy.start``.
        initial_arrays : ArrayRecord | None
            Initial parameters; by default those of a new global model.
        evaluate_fn : Callable[[int, ArrayRecord], MetricRecord | None] | None
            Function that evaluates the global model on the server: before the first round, every ``evaluation.every``
            rounds, and after the final round; never if ``evaluation.every`` is 0. If some parameters are not shared, it
            gets only the shared parameters; load them with ``strict=False``. The arrays have no batch norm statistics,
            so the function must measure these statistics (``with_static_norm``).
        should_stop : Callable[[int, Result], bool] | None
            Function of the round and the result so far, as in Flower from 1.43 on. If it returns True, the run ends.
        resume : RunState | None
            State of a stopped run, such as ``Progress`` or a checkpoint. The run continues with the next round, up to
            ``num_rounds``.
        """
        check_arguments(num_rounds, initial_arrays, resume)
        configs = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        self.check_train_config(configs[0])
        messages.check_own_keys(configs[1])
        if initial_arrays is not None and self.options.privacy.noise:
            host_log.warning(
                "epsilon counts from initial_arrays on: if they were trained on data of these clients, pass the state "
                "of that run as resume, which has its releases"
            )
        self.summary()
        self.num_rounds, self.timeout, first_round = num_rounds, timeout, 1
        if resume is None:
            self.reset()
        else:
            self._load(resume)
            initial_arrays, first_round = pack_tensors(resume.state), resume.server_round + 1
        if initial_arrays is None:
            initial_arrays = pack_tensors(self.federation.architecture.initial_state())
        result = Result(arrays=initial_arrays)
        del initial_arrays, resume  # this frame would keep them until the end of the run
        guarded = guard(grid, self.largest_reply)
        steps = None if self.asynchronous is None else Steps(self, self.asynchronous, guarded, configs[0])
        _Loop(self, guarded, result, configs, evaluate_fn, should_stop, steps).run(first_round)
        return result

    def progress(self, state: State) -> Progress:
        """Return the progress of the run after this round; ``state`` has the global model's parameters."""
        return Progress(
            server_round=self.log.server_round,
            state=state,
            stages=self.chain.state(),
            moments=moment_tensors(self.moments),
            run_key=self.federation.run_key,
            trained=self.federation.nodes.have_trained() if self.federation.architecture.clients_keep else (),
            dealt=self.federation.nodes.dealt(),
            nodes=self.federation.nodes.named(),
            seats=self.federation.nodes.seated(),
            releases=self.spent.releases,
            setup=self.federation.setup,
            evaluated_rule=self.federation.evaluated_rule,
            record=self.log,
            evaluated=self.chain.evaluated(state),
            num_rounds=self.num_rounds,
            evaluated_slice=self.federation.evaluated_slice,
            level_tensors=self.chain.level_tensors,
        )

    def initialize_parameters(self, client_manager: object) -> NoReturn:
        """Raise ``ConfigError``. With Flower's classic API, use ``heterofl_flwr.classic.HeteroFL``."""
        raise ConfigError(
            f"{type(self).__name__} of heterofl_flwr is for the Message API: call its start(grid) in @app.main(), or "
            f"give ServerAppComponents the HeteroFL of heterofl_flwr.classic"
        )

    def summary(self) -> None:
        """Log the configuration of this strategy."""
        log_summary(self.federation)

    def largest_reply(self, message: Message) -> int:
        """Return an upper bound on the bytes of the reply to a message."""
        plan = self.federation.architecture.global_plan
        if message.metadata.message_type.startswith(MessageType.TRAIN) and isinstance(self.current, Round):
            sampled = self.current.slices.get(message.metadata.dst_node_id)
            plan = sampled.plan if sampled else plan
        config_bytes = self.chain.summing.config_bytes if self.chain.summing else 0
        other_bytes = OTHER_BYTES + JSON_GROWTH * config_bytes
        return plan.parameters * ENTRY_BYTES + len(plan.axes) * NAME_BYTES + other_bytes

    def _load(self, state: RunState) -> None:
        try:
            exchanged = self.federation.architecture.check_state(state.state)
        except ShapeError as error:
            raise ConfigError(f"resume is of another model: {error}; expected the build of its run") from error
        model = self.federation.architecture.model
        unsent = model.state_dict().keys() - exchanged_parameters(model).keys()  # a subclass may have added buffers
        if extra := sorted(state.state.keys() - exchanged.keys() - unsent):
            raise ConfigError(
                f"resume is of another model: the clients of this build do not exchange {listed(extra)}; expected the "
                f"build of its run"
            )
        self.federation.load(state)
        for name, callback in name_callbacks(self.callbacks).items():
            if name in state.callbacks:
                callback.load(state.callbacks[name])
        self.chain.load(state.stages)
        self.spent.merge(state.releases)
        if self.options.privacy.noise and state.server_round and not self.spent.releases:
            host_log.warning(
                "resume has no releases, so epsilon counts from here on: what the clients gave away in %s before, "
                "without noise or in an older version, comes on top",
                counted(state.server_round, "round"),
            )
        self.end_round()
        self.log = RoundRecord.empty(state.server_round)
        self.moments = moments_by_rate(state.moments)
        self._have_moments = bool(self.moments) or None

    def exchange(self, grid: Grid, sent: list[Message], timeout: float) -> Iterable[Message]:
        """Send training messages and return the replies.

        With spare clients, the exchange ends when enough replies without an error have arrived.
        """
        if self.options.sampling.spare and isinstance(self.current, Round):
            return exchange(grid, sent, timeout=timeout, enough=self.current.needed, in_order=False)
        return grid.send_and_receive(sent, timeout=timeout)


@dataclass(frozen=True, slots=True)
class _Loop:
    """The loop over rounds of one call of ``start``."""

    strategy: FederationStrategy
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
