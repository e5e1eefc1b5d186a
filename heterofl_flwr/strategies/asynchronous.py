"""Asynchronous training: each update of the model, called a step, takes place while other clients still train."""

import math
import time
from collections import deque
from dataclasses import dataclass, replace
from itertools import zip_longest

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import SILENT, ConfigError, Fault, ReplyError, short
from heterofl_flwr.federation.client_levels import Sampled
from heterofl_flwr.federation.round import Round
from heterofl_flwr.federation.sampling import draw
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.stages.asynchronous import Asynchronous, Slots
from heterofl_flwr.strategies.node_registration import NodeRegistration
from heterofl_flwr.strategies.round_messages import reply_or_fault
from heterofl_flwr.strategies.time_budget import OVERDUE_SHARE
from heterofl_flwr.strategies.train_hooks import RoundHooks, as_flower_error
from heterofl_flwr.transport.arrays import content_bytes, read_tensors
from heterofl_flwr.transport.exchange import first_replies
from heterofl_flwr.transport.relay import Costs, cancel
from heterofl_flwr.transport.slices import Slices


@dataclass(frozen=True, slots=True)
class _Turn:
    """A client in training. ``since`` is the start time of the step that sent the client's slice."""

    node_id: int
    sampled: Sampled
    since: float
    num_bytes: int
    sent_at: float


class Steps:
    """Asynchronous training: ``concurrency`` clients train in parallel; the model takes a step after ``size`` replies.

    A step is a ``Round`` whose clients may have begun to train earlier.
    """

    def __init__(self, strategy: RoundHooks, stage: Asynchronous, grid: Grid, config: ConfigRecord) -> None:
        for name in ("configure_train", "aggregate_train"):
            if getattr(type(strategy), name) is not getattr(RoundHooks, name):
                raise ConfigError(
                    f"{type(strategy).__name__} overrides {name}, which is not called where rounds do not wait: "
                    f"expected training=Training(learning_rate=...) for a schedule and callbacks= for what comes after "
                    f"a step, or rounds that wait (asynchronous.size=0)"
                )
        self._strategy, self._stage, self._grid, self._config = strategy, stage, grid, config
        self._training: dict[str, _Turn] = {}  # by message id, in the order of sending
        self._waiting: list[tuple[_Turn, Message]] = []  # replies that wait for a slot in a later step
        # In simulated time, a client may be slow for any number of seconds; it is never silent.
        self._may_be_silent = strategy.is_remote(grid) or not isinstance(grid, Costs)
        self._patience = math.inf  # seconds from a client's message until its reply is overdue

    @as_flower_error()
    def run(
        self, server_round: int, arrays: ArrayRecord, share: float
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Run a step; return the new global model and the training metrics.

        The step ends when it has ``size`` replies, when ``share`` of the round's remaining time has passed, or when no
        client is in training.
        """
        options, budget = self._stage.options, self._strategy.messages_of(server_round).budget
        slices = Slices(self._strategy.federation.architecture, arrays, self._strategy.chain.level_tensors)
        longest = budget.remaining(share) if self._may_be_silent else math.inf
        current = self._open(server_round, slices, time.monotonic() - longest)
        began, timeout = time.monotonic(), budget.remaining(share)  # the wait for nodes does not count
        self._patience = OVERDUE_SHARE * timeout if self._may_be_silent else math.inf
        slots = Slots(options.size, options.quota)
        self._fill(current, slots)
        while not slots.all_taken:
            self._send(current, slices, began)
            seconds = began + timeout - time.monotonic()
            if not self._training or seconds <= 0:
                break
            for reply in first_replies(self._grid, self._training, min(seconds, self._seconds_to_overdue())):
                self._waiting.append((self._training.pop(reply.metadata.reply_to_message_id), reply))
            self._fill(current, slots)
        nodes, busy = self._strategy.federation.nodes, [turn.node_id for turn in self._busy()]
        self._stage.training = [nodes.partition(node_id) for node_id in busy]
        for node_id in busy:
            current.leave_out(node_id)
        answering = len(current.slices) - len(current.silent)
        current.needed = min(options.size, max(1, answering))
        return self._strategy.close_round()

    def close(self) -> None:
        """Cancel the messages to all clients that still train."""
        cancel(self._grid, list(self._training))

    def _seconds_to_overdue(self) -> float:
        """Return the seconds until the next reply is overdue."""
        overdue_at = self._patience - time.monotonic()
        left = [turn.sent_at + overdue_at for turn in self._training.values()]
        return min((seconds for seconds in left if seconds > 0), default=math.inf)

    def _expected(self) -> list[_Turn]:
        """Return ``_busy()`` without the clients whose reply is overdue."""
        sent_after = time.monotonic() - self._patience
        training = [turn for turn in self._training.values() if turn.sent_at > sent_after]
        return [*training, *(turn for turn, _ in self._waiting)]

    def _busy(self) -> list[_Turn]:
        """Return the clients in training, and those whose replies wait for a later step."""
        return [*self._training.values(), *(turn for turn, _ in self._waiting)]

    def _open(self, server_round: int, slices: Slices, before: float) -> Round:
        """Open a step; give up clients that have left, and clients that still train a slice that is too old.

        A slice is too old if the step that sent it began at the time ``before`` (``time.monotonic``) or earlier.
        """
        strategy, federation = self._strategy, self._strategy.federation
        nodes = federation.nodes
        registration = NodeRegistration(self._grid, federation, server_round, strategy.messages_of(server_round).budget)
        node_ids = registration.wait()
        registration.log_changes()
        lost = {id_: turn for id_, turn in self._training.items() if turn.since <= before or turn.node_id not in nodes}
        self._training = {id_: turn for id_, turn in self._training.items() if id_ not in lost}
        self._waiting = [(turn, reply) for turn, reply in self._waiting if turn.node_id in nodes]
        cancel(self._grid, list(lost))
        late = [turn for turn in lost.values() if turn.node_id in nodes]
        current = strategy.new_round(server_round, node_ids, slices.state, self._config, self._grid, sampled=())
        for turn in (*self._busy(), *late):
            current.begin(turn.node_id, turn.sampled)
        for turn in late:
            current.note_sent(turn.node_id, turn.num_bytes)
            current.refuse(turn.node_id, Fault(SILENT, "silent"))
        return current

    @torch_threads(1)  # as in rounds (RoundMessages.watch)
    def _fill(self, current: Round, slots: Slots) -> None:
        """Add waiting replies to the step, or refuse them.

        A faulty or too stale reply is refused. Any other reply is added if ``slots`` has a slot for its rate; without a
        slot, the reply waits for a later step.
        """
        waiting, self._waiting = deque(self._waiting), []
        while waiting:
            turn, reply = waiting.popleft()
            rate, result = turn.sampled.rate, self._too_stale(turn.sampled) or reply_or_fault(reply)
            later = [later_turn.sampled.rate for later_turn in (*self._expected(), *(pair[0] for pair in waiting))]
            if not isinstance(result, Fault) and not slots.has_slot(rate, later):
                self._waiting.append((turn, reply))
                continue
            waiting, self._waiting = deque([*self._waiting, *waiting]), []  # another level's slot may be free now
            current.note_sent(turn.node_id, turn.num_bytes)
            try:
                if not isinstance(result, Fault):
                    self._strategy.add_reply(turn.node_id, result)
                    slots.take(rate)
            except ReplyError as error:
                result = Fault(short(str(error)), "rejected")
            if isinstance(result, Fault):
                current.refuse(turn.node_id, result)
                continue
            for callback in self._strategy.callbacks:
                callback.on_reply("trained", len(current.answers), self._stage.options.size, 0)

    def _too_stale(self, sampled: Sampled) -> Fault | None:
        bound = self._stage.options.bound
        if not bound or sampled.sent is None:
            return None
        steps = self._stage.clocks.staleness(sampled.plan, sampled.sent)[sampled.plan]
        reason = f"{steps} steps stale, expected up to {bound} (asynchronous.bound)"
        return Fault(reason, "rejected") if steps > bound else None

    def _send(self, current: Round, slices: Slices, began: float) -> None:
        drawn, clocks = self._draw(current), self._stage.clocks
        for node_id in drawn:
            current.begin(node_id)
            sampled = current.slices[node_id]
            # The snapshot shares the memory of the record that is sent to all clients of this plan.
            tensors = read_tensors(slices.arrays(sampled.plan))
            version = clocks.snapshot(current.server_round - 1, sampled.plan, tensors)
            current.begin(node_id, replace(sampled, sent=version))
        sent = [self._strategy.train_message(current, node_id, slices, self._config, {}) for node_id in drawn]
        ids = list(self._grid.push_messages(sent)) if sent else []
        for node_id, message, id_ in zip_longest(drawn, sent, ids[: len(drawn)]):
            if not id_:
                current.refuse(node_id, Fault("the message could not be sent", "gone"))
                continue
            self._training[id_] = _Turn(
                node_id, current.slices[node_id], began, content_bytes(message.content), time.monotonic()
            )

    def _draw(self, current: Round) -> list[int]:
        """Sample the clients that begin to train now: at most ``concurrency`` minus ``len(_expected())``.

        After a resume, the clients that were training when the state was saved come first.
        """
        nodes, number = self._strategy.federation.nodes, self._stage.options.concurrency - len(self._expected())
        free = {nodes.partition(node_id): node_id for node_id in current.trainable if node_id not in current.slices}
        resumed = [free.pop(partition) for partition in self._stage.training if partition in free]
        self._stage.training = []
        # Without clients in the step, the draw equals that of a synchronous round.
        turn: tuple[int, ...] = (len(current.slices),) if current.slices else ()
        places, seed = max(number - len(resumed), 0), self._strategy.federation.seed
        ordered = [free[partition] for partition in sorted(free)]
        drawn = draw(ordered, places, "train", current.server_round, *turn, seed=seed)
        return [*resumed, *drawn][:number]
