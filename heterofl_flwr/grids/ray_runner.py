"""What lets Ray actors run a grid's clients: who gets which messages, and what happens when one dies."""

import heapq
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from flwr.app import ArrayRecord, Context, Message

from heterofl_flwr.compat import ErrorCode
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.grids.apps import Envelope, failure
from heterofl_flwr.grids.queued import Group, Runner
from heterofl_flwr.packing import count_bytes

logger = logging.getLogger(__name__)

RETRIES = 2
"""How often a message is given to another actor."""

STARTS = 3
"""How often an actor is started that dies before it has loaded the ClientApp."""

PATIENCE = 60.0
"""Seconds until a warning says that no actor has started, and what the cluster has."""

GRACE = 5.0
"""Seconds that the thread has to end."""

LARGE = 1 << 16
"""Bytes from which Ray stores a record once, instead of each message that carries it."""


class ActorDeathError(HeteroFLError):
    """An actor has died; the text says how, after "the process that ran node 1"."""


class Ready(NamedTuple):
    """What an actor says first: why it cannot load the ClientApp, and whether that answers messages together."""

    trouble: str
    takes_groups: bool


@dataclass(slots=True, weakref_slot=True)
class StoredRecord:
    """A record that messages carry, such as the slice of a level, and where Ray has stored it."""

    record: ArrayRecord
    reference: object = None


class Worker(Protocol):
    """An actor, as the runner sees it. It does one thing at a time, and reports what came of it."""

    def ask(self) -> None:
        """Let it say that it is ready."""

    def answer(self, envelopes: Sequence[Envelope], stored: Sequence[StoredRecord]) -> None:
        """Let it answer messages."""

    def kill(self) -> None:
        """End it at once."""


Outcome = Callable[[], Ready | list[Envelope]]
Report = Callable[[Worker, Outcome], object]
"""Called from any thread. The function that it is given returns what an actor says, or raises ``ActorDeathError``."""


class ActorRunner(Runner):
    """Runs clients in actors, in each one group at a time; one that dies is replaced, and another gets its messages.

    One thread does that. A node's messages are answered in the order in which they were sent, so its context is never
    in two places.

    Parameters
    ----------
    start : callable
        Starts an actor, which reports to the function that it is given.
    number : int
        How many actors there are.
    contexts : dict
        The nodes' contexts.
    lack : callable
        Says what actors need, and what there is, for when none starts.
    check : callable
        Raises an error if no actor will be heard of any more; called often.
    """

    def __init__(
        self,
        start: Callable[[Report], Worker],
        number: int,
        contexts: dict[int, Context],
        lack: Callable[[], str],
        check: Callable[[], object],
    ) -> None:
        super().__init__(contexts)
        self._start, self._lack, self._check = start, lack, check
        self._lines: dict[int, deque[Group]] = {}  # by node; a group that is first in all its lines is running or ready
        self._ready: list[Group] = []  # a heap
        self._stored: WeakValueDictionary[int, StoredRecord] = WeakValueDictionary()  # by the record's identity
        self._needed: dict[int, list[StoredRecord]] = {}  # what groups need of it, by their number
        self._starts: dict[Worker, int] = {}  # all actors; how often each was started, 0 when it has been ready
        self._idle: list[Worker] = []
        self._running: dict[Worker, Group] = {}
        self._changed = threading.Condition()  # guards all of these
        self._events: SimpleQueue[tuple[Worker, Outcome] | None] = SimpleQueue()
        self._closed = self._is_loaded = False  # whether any actor has loaded the ClientApp
        self._trouble: HeteroFLError | None = None  # why nobody will be answered any more
        self._warn_at = time.monotonic() + PATIENCE
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        try:
            with self._changed:
                for _ in range(number):
                    self._add(1)
                self._changed.wait_for(lambda: self._idle or self._trouble)
                if self._trouble:
                    raise self._trouble
        except BaseException:
            self.close()
            raise

    def submit(self, groups: Sequence[Group]) -> None:
        """Queue groups; idle actors begin at once."""
        with self._changed:
            for group in groups:
                self._needed[group.number] = self._find_stored(group.messages)
                self._groups.update(dict.fromkeys(group.ids, group))
                for node_id in group.nodes:
                    self._lines.setdefault(node_id, deque()).append(group)
                self._queue_if_first(group)
        self._events.put(None)

    def wait(self, ids: Sequence[str], deadline: float | None) -> list[str]:
        """Wait for these replies, while there is a message among these that somebody waits for."""
        with self._changed:
            seconds = None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            self._changed.wait_for(lambda: self._trouble or self._groups.keys().isdisjoint(ids), seconds)
            if self._trouble:
                raise self._trouble
            return [id_ for id_ in ids if id_ in self._done]

    def cancel(self, ids: Sequence[str]) -> None:
        """Drop these messages; actors that are at work for nobody else are ended."""
        with self._changed:
            super().cancel(ids)
            self._changed.notify_all()
        self._events.put(None)

    def close(self) -> None:
        """End the thread and the actors."""
        with self._changed:
            self._closed = True
            super().close()
            self._changed.notify_all()
        self._events.put(None)
        if threading.current_thread() is not self._thread:  # there, it was the garbage collector that found the grid
            self._thread.join(GRACE)
        for worker in self._starts:
            worker.kill()

    def _serve(self) -> None:
        """Let what is reported and queued have its effects, until the grid is closed."""
        while not self._closed:
            event = None
            with suppress(Empty):
                event = self._events.get(timeout=1.0)
            with self._changed:
                try:
                    self._check()
                    self._warn_if_none_starts()
                    self._handle(event)
                except Exception as error:  # else callers would wait for ever
                    self._trouble = HeteroFLError(f"Ray cannot go on: {error}")
                self._changed.notify_all()
            del event  # and with it the replies

    def _handle(self, event: tuple[Worker, Outcome] | None) -> None:
        if self._closed:
            return
        if event is not None and event[0] in self._starts:  # the others were ended
            self._accept(*event)
        for worker, group in list(self._running.items()):
            if not self._is_awaited(group):
                del self._running[worker]
                self._leave_lines(group)
                self._replace(worker)
        self._hand_out()

    def _accept(self, worker: Worker, outcome: Outcome) -> None:
        """Accept what an actor says, or its death."""
        group = self._running.pop(worker, None)
        try:
            said = outcome()
        except ActorDeathError as death:
            if group is None:
                self._accept_failed_start(worker, f"it {death} while it loaded the ClientApp")
            else:
                self._accept_death(worker, group, death)
            return
        except Exception as error:  # such as a reply that cannot be unpickled
            said = [failure(message, ErrorCode.UNKNOWN, error) for message in group.messages] if group else []
        if isinstance(said, Ready):
            if said.trouble:
                self._accept_failed_start(worker, said.trouble)
                return
            self.takes_groups, self._is_loaded, self._starts[worker] = said.takes_groups, True, 0
            self._warn_at = time.monotonic() + PATIENCE
        elif group is not None:
            self._finish(group, said)
        self._idle.append(worker)

    def _accept_failed_start(self, worker: Worker, trouble: str) -> None:
        """Start an actor again that is not ready; in the beginning, and where that has failed too often, give it up.

        A single try is not enough: what is started may die with a machine whose end is not known yet.
        """
        starts = self._starts[worker]
        if starts < STARTS and self._is_loaded:
            logger.warning("An idle actor is replaced: %s.", trouble)
            self._replace(worker, starts + 1)
            return
        del self._starts[worker]
        if not self._starts or not self._is_loaded:
            self._trouble = ConfigError(f"in an actor: {trouble}")

    def _accept_death(self, worker: Worker, group: Group, death: ActorDeathError) -> None:
        """Replace an actor, and give its group to another, if it may; the nodes' contexts are as they were."""
        self._replace(worker)
        if not self._is_awaited(group):
            self._leave_lines(group)
            return
        for other in self._idle:  # it may have died as well, of the same cause
            other.ask()
        self._idle.clear()
        self.deaths.append(self._describe(group.messages[0], group, death))
        if group.deaths < RETRIES:
            group.deaths += 1
            logger.warning("%s Another one is given its messages.", self.deaths[-1])
            heapq.heappush(self._ready, group)
        else:
            code = ErrorCode.CLIENT_APP_CRASHED
            self._finish(group, [failure(one, code, self._describe(one, group, death)) for one in group.messages])

    def _hand_out(self) -> None:
        """Give idle actors the most urgent groups that somebody waits for."""
        while self._idle and self._ready:
            group = heapq.heappop(self._ready)
            if not self._is_awaited(group):
                self._leave_lines(group)
                continue
            worker = self._idle.pop()
            try:
                pairs = zip(group.messages, group.nodes, strict=True)
                envelopes = [Envelope(message, self._contexts[node_id]) for message, node_id in pairs]
                worker.answer(envelopes, self._needed[group.number])
            except Exception as error:  # such as a message that cannot be pickled
                self._idle.append(worker)
                self._finish(group, [failure(message, ErrorCode.UNKNOWN, error) for message in group.messages])
            else:
                self._running[worker] = group

    def _add(self, starts: int) -> None:
        """Start an actor, which was started so often, this one included."""
        self._starts[self._start(lambda worker, outcome: self._events.put((worker, outcome)))] = starts

    def _replace(self, worker: Worker, starts: int = 1) -> None:
        """End an actor, and start another one."""
        worker.kill()
        del self._starts[worker]
        self._add(starts)

    def _finish(self, group: Group, answers: Sequence[Envelope]) -> None:
        self._keep(group, answers)
        self._leave_lines(group)

    def _is_awaited(self, group: Group) -> bool:
        """Return whether somebody waits for a reply; then all are answered, so that those who wait get the same."""
        return any(id_ in self._groups for id_ in group.ids)

    def _describe(self, message: Message, group: Group, death: ActorDeathError) -> str:
        """Name the node that an actor ran, maybe among others, and say how it died."""
        node_id, others = message.metadata.dst_node_id, len(group.messages) - 1
        partition = self._contexts[node_id].node_config.get("partition-id")
        among = f" and {others} others" if others else ""
        before = f" {group.deaths} before it died as well." if group.deaths else ""
        return f"The process that ran node {node_id} (partition {partition}){among} {death}.{before}"

    def _leave_lines(self, group: Group) -> None:
        """Remove a group from its nodes' lines; the next ones there may get ready."""
        del self._needed[group.number]
        for node_id in group.nodes:
            line = self._lines[node_id]
            line.popleft()
            if line:
                self._queue_if_first(line[0])
            else:
                del self._lines[node_id]

    def _queue_if_first(self, group: Group) -> None:
        """Let a group be handed out if it is first in all its lines."""
        if all(self._lines[node_id][0] is group for node_id in group.nodes):
            heapq.heappush(self._ready, group)

    def _find_stored(self, messages: Sequence[Message]) -> list[StoredRecord]:
        """Return the large records of messages, each once; those that other messages carry too are the same."""
        contents = [message.content for message in messages if message.has_content()]
        records = {id(own): own for content in contents for own in content.array_records.values()}
        large = [record for record in records.values() if count_bytes(record) >= LARGE]
        return [self._stored.setdefault(id(record), StoredRecord(record)) for record in large]

    def _warn_if_none_starts(self) -> None:
        """Say what actors need where none is ready for long: others may use the cluster.

        Nothing tells an actor without room from one that imports torch on a slow machine, so no time limit ends the
        wait.
        """
        if time.monotonic() > self._warn_at and all(self._starts.values()):
            logger.warning("no actor has started in %g s; waiting: %s", PATIENCE, self._lack())
            self._warn_at = math.inf
