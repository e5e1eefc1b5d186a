"""The loop where rounds do not wait: a step of the model for every so many replies, whoever still trains."""

import math
import time
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import SILENT, ConfigError, Fault, ReplyError, short
from heterofl_flwr.federation.round import Round, Sampled
from heterofl_flwr.federation.sampling import draw
from heterofl_flwr.stages.asynchronous import Asynchronous, Seats
from heterofl_flwr.strategies.arrivals import Arrivals
from heterofl_flwr.strategies.budget import Budget
from heterofl_flwr.strategies.instructions import Slices
from heterofl_flwr.strategies.strategy import FederationStrategy, as_flower_error
from heterofl_flwr.transport import packing
from heterofl_flwr.transport.exchange import cancel, first_replies, reply_or_fault

OVERDUE_SHARE = 0.25
"""Share of a step's time after which a client without a reply is replaced; its reply still counts if it comes."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """A client that trains: what, since a step that began when, and the bytes that it was sent."""

    node_id: int
    sampled: Sampled
    since: float
    num_bytes: int
    sent_at: float = field(default_factory=time.monotonic)


class Steps:
    """Keeps clients training, and lets the model take steps.

    A step is a ``Round`` in which clients may train that began before it, or go on after it. One whose turn has ended
    in a step does not train again before the next: it would train from the same model. What each client was sent is
    kept as long as it trains: one slice for each version and level that somebody trains from.
    """

    def __init__(self, strategy: FederationStrategy, kept: Asynchronous, grid: Grid, config: ConfigRecord) -> None:
        for name in ("configure_train", "aggregate_train"):
            if getattr(type(strategy), name) is not getattr(FederationStrategy, name):
                raise ConfigError(
                    f"{type(strategy).__name__} overrides {name}, which is not called where rounds do not wait: "
                    f"expected learning_rate= for a schedule and callbacks= for what comes after a step, or rounds "
                    f"that wait (asynchronous.size=0)"
                )
        self._strategy, self._kept, self._grid, self._config = strategy, kept, grid, config
        self._training: dict[str, _Turn] = {}  # by message, in the order sent
        self._overdue: set[int] = set()  # clients whose last reply is overdue: they are replaced, and drawn last
        self._waiting: list[tuple[_Turn, Message]] = []  # answered, without a seat so far

    @as_flower_error()
    def run(
        self, server_round: int, arrays: ArrayRecord, timeout: float
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model after a step: when there are as many replies as it takes, or after so many seconds."""
        began, options = time.monotonic(), self._kept.options
        slices = Slices(self._strategy.federation, arrays)
        current = self._open(server_round, slices, began - timeout)
        seats = Seats(options.size, options.quota)
        self._seat(current, seats)
        while not seats.full:
            self._seconds_to_overdue(OVERDUE_SHARE * timeout)
            self._send(current, slices, began)
            overdue_in = self._seconds_to_overdue(OVERDUE_SHARE * timeout)
            seconds = began + timeout - time.monotonic()
            if not self._training or seconds <= 0:
                break
            for reply in first_replies(self._grid, self._training, max(0.0, min(seconds, overdue_in))):
                turn = self._training.pop(reply.metadata.reply_to_message_id)
                self._overdue.discard(turn.node_id)
                self._waiting.append((turn, reply))
            self._seat(current, seats)
        nodes, busy = self._strategy.federation.nodes, [turn.node_id for turn in self._busy()]
        self._kept.training = [nodes.partition(node_id) for node_id in busy]
        for node_id in busy:  # this step is not about them
            current.leave_out(node_id)
        current.needed = min(options.size, max(1, len(current.slices) - len(current.silent)))  # of those that are heard
        return self._strategy.close_round()

    def _seconds_to_overdue(self, patience: float) -> float:
        """Note the clients whose replies are overdue; return the seconds until the next one is."""
        now = time.monotonic()
        self._overdue |= {turn.node_id for turn in self._training.values() if now - turn.sent_at >= patience}
        turns = [turn for turn in self._training.values() if turn.node_id not in self._overdue]
        return min((turn.sent_at + patience - now for turn in turns), default=math.inf)

    def close(self) -> None:
        """Let go of all who still train."""
        cancel(self._grid, list(self._training))

    def _busy(self) -> list[_Turn]:
        """Return who trains, or waits for a seat."""
        return [*self._training.values(), *(turn for turn, _ in self._waiting)]

    def _open(self, server_round: int, slices: Slices, before: float) -> Round:
        """Open a step, without those of which nothing is known any more, or who were asked in one begun before."""
        strategy, federation = self._strategy, self._strategy.federation
        known, budget = federation.nodes, strategy.budget or Budget(strategy.timeout)
        arrivals = Arrivals(self._grid, federation, server_round, budget)
        nodes = arrivals.wait()
        arrivals.log_changes()
        lost = {id_: own for id_, own in self._training.items() if own.since <= before or own.node_id not in known}
        self._training = {id_: own for id_, own in self._training.items() if id_ not in lost}
        self._waiting = [(turn, reply) for turn, reply in self._waiting if turn.node_id in known]
        cancel(self._grid, list(lost))
        remote = strategy.is_remote(self._grid)
        current = Round(federation, strategy.chain, server_round, nodes, slices.state, remote=remote, drawn=())
        strategy.open(current)
        for turn in (*self._busy(), *(own for own in lost.values() if own.node_id in known)):
            current.begin(turn.node_id, turn.sampled)
        for turn in lost.values():
            if turn.node_id in known:
                current.refuse(turn.node_id, Fault(SILENT, "silent"))
        return current

    def _seat(self, current: Round, seats: Seats) -> None:
        """Add the replies that there is a seat for, in the order in which they came; the others wait."""
        waiting, self._waiting = deque(self._waiting), []
        while waiting:
            turn, reply = waiting.popleft()
            rate, found = turn.sampled.rate, self._too_stale(turn.sampled) or reply_or_fault(reply)
            others = [own.sampled.rate for own in (*self._busy(), *(left for left, _ in waiting))]
            if not isinstance(found, Fault) and not seats.has_seat(rate, others):
                self._waiting.append((turn, reply))
                continue
            current.note_sent(turn.node_id, turn.num_bytes)
            try:
                if not isinstance(found, Fault):
                    self._strategy.add_reply(turn.node_id, found)
                    seats.take(rate)
            except ReplyError as error:
                found = Fault(short(str(error)), "rejected")
            if isinstance(found, Fault):
                current.refuse(turn.node_id, found)
                continue
            for callback in self._strategy.callbacks:
                callback.on_reply("trained", len(current.answers), self._kept.options.size)

    def _too_stale(self, own: Sampled) -> Fault | None:
        """Return the fault of a reply that is older than the bound, even where it is least stale."""
        bound = self._kept.options.bound
        found = self._kept.clocks.staleness(own.plan, own.sent)[own.plan] if bound and own.sent else 0
        return Fault(f"{found} steps stale, expected up to {bound} (asynchronous.bound)") if found > bound else None

    def _send(self, current: Round, slices: Slices, began: float) -> None:
        """Send clients their slices, so that as many train as are to."""
        drawn, clocks = self._draw(current), self._kept.clocks
        for node_id in drawn:
            current.begin(node_id)
            own = current.slices[node_id]
            # Its tensors lie where the record does that all of this plan share.
            version = clocks.snapshot(own.plan, packing.read_tensors(slices.record(own.plan)))
            current.begin(node_id, replace(own, sent=version))
        sent = [self._strategy.train_message(node_id, slices, self._config, {}) for node_id in drawn]
        ids = list(self._grid.push_messages(sent)) if sent else []
        for node_id, id_ in zip_longest(drawn, ids[: len(drawn)]):
            own = current.slices[node_id]
            if not id_:
                current.refuse(node_id, Fault("the message could not be sent"))
                continue
            self._training[id_] = _Turn(node_id, own, began, self._strategy.sent_bytes(slices, own.plan))

    def _draw(self, current: Round) -> list[int]:
        """Draw the clients that begin now; first those that trained when a run that goes on was stopped."""
        nodes, number = (
            self._strategy.federation.nodes,
            self._kept.options.concurrency - sum(turn.node_id not in self._overdue for turn in self._busy()),
        )
        free = {nodes.partition(own): own for own in current.trainable if own not in current.slices}
        again = [free.pop(partition) for partition in self._kept.training if partition in free]
        self._kept.training = []
        # With nobody training, the draw is that of a round that waits.
        turn: tuple[int, ...] = (len(current.slices),) if current.slices else ()
        left, seed = max(number - len(again), 0), self._strategy.federation.seed
        others = draw(
            [free[partition] for partition in sorted(free)], left, "train", current.server_round, *turn, seed=seed
        )
        return [*again, *others][:number]
