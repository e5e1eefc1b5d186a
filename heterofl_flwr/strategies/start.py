"""``FederationStrategy``, the base class of the strategies, with Flower's ``start``."""

from collections.abc import Iterable
from typing import NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from heterofl_flwr.common.errors import ConfigError, ShapeError, check_seconds, check_takes, counted, listed
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.federation.callbacks import Progress, RunState, name_callbacks
from heterofl_flwr.federation.round import Round
from heterofl_flwr.federation.round_record import RoundRecord, host_log
from heterofl_flwr.federation.start_summary import log_summary
from heterofl_flwr.stages.client_stage import State
from heterofl_flwr.strategies.arguments import check_arguments
from heterofl_flwr.strategies.asynchronous import Steps
from heterofl_flwr.strategies.evaluate_hooks import EvaluationHooks
from heterofl_flwr.strategies.round_loop import EvaluateFn, RoundLoop, ShouldStop
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.arrays import ENTRY_BYTES, moment_tensors, moments_by_rate, pack_tensors
from heterofl_flwr.transport.exchange import exchange
from heterofl_flwr.transport.size_guard import JSON_GROWTH, guard

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
        check_seconds("timeout", timeout)
        check_takes("evaluate_fn", evaluate_fn, "server_round", "arrays")
        check_takes("should_stop", should_stop, "server_round", "result")
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
        RoundLoop(self, guarded, result, configs, evaluate_fn, should_stop, steps).run(first_round)
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
            counted=dict(self.federation.nodes.counted) if self.federation.architecture.clients_keep else {},
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
        personal = exchanged_parameters(self.federation.architecture.model).keys() - exchanged.keys()
        if extra := sorted(personal.intersection(state.state)):
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
