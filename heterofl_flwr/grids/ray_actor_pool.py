"""The pool of Ray actors that run a grid's clients: their messages, and the replacement of dead actors."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from flwr.app import ArrayRecord, Context, Message

from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.grids.apps import Envelope, failure
from heterofl_flwr.grids.queued import Group, Runner
from heterofl_flwr.grids.ray_actors import Actor, ActorOptions, pack, unpack
from heterofl_flwr.grids.ray_session import check_alive
from heterofl_flwr.transport.compat import ErrorCode
from heterofl_flwr.transport.packing import count_bytes

logger = logging.getLogger(__name__)

RETRIES = 2
"""Number of times that a message is given to another actor."""

STARTS = 3
"""Number of actors in a row that may die while they load the ClientApp; then no more are started."""

PATIENCE = 60.0
"""Seconds until a warning says that no actor has started, and what the cluster has."""

TURN = 1.0
"""Seconds between two checks that Ray is alive, while a caller waits."""

LARGE = 1 << 16
"""Bytes from which Ray stores a record once, instead of each message that carries it."""

Reference = Any
"""Ray's reference to a future result."""


class ActorPool(Runner):
    """Pool of Ray actors, each with one group of clients at a time; dead ones are replaced, their groups rerun.

    This happens when messages are pushed, waited for or looked for. A node's messages are answered in the order in
    which they were sent, so its context is never in two places.
    """

    def __init__(self, options: ActorOptions, number: int, contexts: dict[int, Context]) -> None:
        super().__init__(contexts)
        self._options = options
        self._waiting: list[Group] = []  # in order
        self._idle: list[Actor] = []
        self._running: dict[Reference, tuple[Actor, Group | None]] = {}  # None: it says when it is ready
        self._logs: dict[Actor, Path] = {}  # where the stderr of actors goes
        self._is_loaded, self._failed_starts = False, 0  # whether any actor has been ready; in a row
        self._warn_at = time.monotonic() + PATIENCE
        self._lock = threading.RLock()  # Flower's classic server asks from several threads
        try:
            for _ in range(number):
                self._ask(options.start())
            while not self._idle:
                self._step(TURN)
        except BaseException:
            self.close()
            raise

    def submit(self, groups: Sequence[Group]) -> None:
        """Queue groups; idle actors begin at once."""
        with self._lock:
            stored: dict[int, Reference] = {}
            urgency: dict[int, float] = {}
            for group in groups:
                self._groups.update(dict.fromkeys(group.ids, group))
                # No message is more urgent than one that was sent to its node before.
                group.urgency = max([group.urgency, *(urgency.get(node_id, -math.inf) for node_id in group.nodes)])
                urgency.update(dict.fromkeys(group.nodes, group.urgency))
                for record in _records(group):
                    if id(record) not in stored and count_bytes(record) >= LARGE:
                        stored[id(record)] = ray.put(record)
                group.stored = stored
            self._waiting = sorted([*self._waiting, *groups])
            self._step(0.0)

    def wait(self, ids: Sequence[str], deadline: float | None) -> list[str]:
        """Wait for these replies, while there is a message among these that somebody waits for."""
        seconds = math.inf
        while seconds > 0 and not self._groups.keys().isdisjoint(ids):
            seconds = math.inf if deadline is None else deadline - time.monotonic()
            with self._lock:
                self._step(min(max(seconds, 0.0), TURN))
        return [id_ for id_ in ids if id_ in self._done]

    def cancel(self, ids: Sequence[str]) -> None:
        """Drop these messages, and end the actors that work on nothing else."""
        with self._lock:
            super().cancel(ids)
            self._waiting = [group for group in self._waiting if self._is_awaited(group)]
            for reference, (actor, group) in list(self._running.items()):
                if group is not None and not self._is_awaited(group):
                    del self._running[reference]
                    self._replace(actor)

    def close(self) -> None:
        """End the actors."""
        with self._lock:
            super().close()
            for actor in (*self._idle, *(actor for actor, _ in self._running.values())):
                _kill(actor)
            self._waiting, self._idle, self._running = [], [], {}

    def _step(self, seconds: float) -> None:
        """Give idle actors what waits, and accept what the others have to say, for which it waits so long."""
        self._hand_out()
        running = list(self._running)
        if running:
            ray.wait(running, timeout=seconds)
            for reference in ray.wait(running, num_returns=len(running), timeout=0)[0]:
                self._accept(reference, *self._running.pop(reference))
        try:
            check_alive()
        except HeteroFLError:
            self._running.clear()  # else those who wait no more would end them, which hangs
            raise
        self._warn_if_none_starts()
        self._hand_out()

    def _hand_out(self) -> None:
        """Give idle actors the most urgent groups that somebody waits for."""
        while self._idle and (group := self._take_next()) is not None:
            actor = self._idle.pop()
            try:
                self._running[self._send(actor, group)] = actor, group
            except Exception as error:  # such as a message that cannot be pickled
                self._idle.append(actor)
                self._keep(group, [failure(message, ErrorCode.UNKNOWN, error) for message in group.messages])

    def _take_next(self) -> Group | None:
        """Return the first group of which no node is busy, or has an earlier message."""
        busy = {node_id for _, group in self._running.values() if group is not None for node_id in group.nodes}
        for place, group in enumerate(self._waiting):
            if busy.isdisjoint(group.nodes):
                return self._waiting.pop(place)
            busy.update(group.nodes)
        return None

    def _send(self, actor: Actor, group: Group) -> Reference:
        """Let an actor answer a group's messages; what Ray has stored, it fetches."""
        references = {id_: group.stored[id_] for id_ in map(id, _records(group)) if id_ in group.stored}
        numbers = {id_: number for number, id_ in enumerate(references)}
        pairs = zip(group.messages, group.nodes, strict=True)
        pickled = [pack(Envelope(message, self._contexts[node_id]), numbers) for message, node_id in pairs]
        return actor.answer.remote(pickled, *references.values())

    def _accept(self, reference: Reference, actor: Actor, group: Group | None) -> None:
        """Accept what an actor says, or its death."""
        try:
            result = ray.get(reference)
            answers = [] if group is None else list(map(unpack, result))
        except Exception as error:  # the actor's end, or such as a reply that cannot be unpickled
            dead = isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)
            if dead or group is None:
                self._accept_death(actor, group, error)
                return
            answers = [failure(message, ErrorCode.UNKNOWN, error) for message in group.messages]
        if group is None:
            self._accept_start(actor, *result)
        else:
            self._keep(group, answers)
            self._idle.append(actor)

    def _accept_start(self, actor: Actor, trouble: str, takes_groups: bool, log: str) -> None:
        """Accept that an actor is ready, or why it is not."""
        if trouble:
            self._accept_failed_start(actor, trouble)
            return
        self.takes_groups, self._is_loaded, self._failed_starts = takes_groups, True, 0
        self._logs[actor] = Path(log)
        self._idle.append(actor)

    def _accept_failed_start(self, actor: Actor, trouble: str) -> None:
        """Start another actor for one that is not ready; in the beginning, and where that has failed too often, none.

        A single try is not enough: what is started may die with a machine whose end is not known yet.
        """
        self._failed_starts += 1
        if self._is_loaded and self._failed_starts <= STARTS:
            logger.warning("An idle actor is replaced: %s.", trouble)
            self._replace(actor)
        elif not self._is_loaded or not (self._idle or self._running):
            raise ConfigError(f"in an actor: {trouble}")

    def _accept_death(self, actor: Actor, group: Group | None, error: Exception) -> None:
        """Replace an actor, and give its group to another, if it may; the nodes' contexts are as they were."""
        death = self._describe_end(actor, error)
        if group is None:
            self._accept_failed_start(actor, f"it {death} while it loaded the ClientApp")
            return
        self._replace(actor)
        for idle in self._idle:  # it may have died as well, of the same cause
            self._ask(idle)
        self._idle.clear()
        self.deaths.append(self._describe(group.messages[0], group, death))
        if group.deaths < RETRIES:
            group.deaths += 1
            logger.warning("%s Another one is given its messages.", self.deaths[-1])
            self._waiting = sorted([group, *self._waiting])
        else:
            code = ErrorCode.CLIENT_APP_CRASHED
            self._keep(
                group, [failure(message, code, self._describe(message, group, death)) for message in group.messages]
            )

    def _ask(self, actor: Actor) -> None:
        """Let an actor say that it is ready; any answer is a sign of life."""
        self._running[actor.ready.remote()] = actor, None

    def _replace(self, actor: Actor) -> None:
        """End an actor, and start another one."""
        _kill(actor)
        self._logs.pop(actor, None)
        self._warn_at = time.monotonic() + PATIENCE  # a replacement has as long to start as the first actors had
        self._ask(self._options.start())

    def _is_awaited(self, group: Group) -> bool:
        """Return whether somebody waits for a reply; then all are answered, so that those who wait get the same."""
        return any(id_ in self._groups for id_ in group.ids)

    def _describe(self, message: Message, group: Group, death: str) -> str:
        """Name the node that an actor ran, maybe among others, and say how it died."""
        node_id, number = message.metadata.dst_node_id, len(group.messages) - 1
        partition = self._contexts[node_id].node_config.get("partition-id")
        among = f" and {number} others" if number else ""
        before = f" {group.deaths} before it died as well." if group.deaths else ""
        return f"The process that ran node {node_id} (partition {partition}){among} {death}.{before}"

    def _describe_end(self, actor: Actor, error: Exception) -> str:
        """Say how an actor ended, in Ray's words without its guesses why, and its last lines if they are here."""
        text = " ".join(line.strip() for line in str(error).splitlines() if not line.startswith("\t"))
        text = text.rpartition("Worker exit detail:")[2].partition("Some common causes include:")[0]
        log = self._logs.get(actor, Path())
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        lines = [
            line.strip() for line in lines if line.strip() and not line.startswith(":")
        ]  # Ray's begin with a colon
        end = f" (its last lines: {' | '.join(lines[-5:])})" if lines else ""
        return f"died: {text.strip().rstrip('.')}{end}"

    def _warn_if_none_starts(self) -> None:
        """Say what actors need where none is ready for long: others may use the cluster.

        Nothing tells an actor without room from one that imports torch on a slow machine, so no time limit ends the
        wait.
        """
        none_is_ready = not self._idle and all(group is None for _, group in self._running.values())
        if time.monotonic() > self._warn_at and none_is_ready:
            logger.warning("no actor has started in %g s; waiting: %s", PATIENCE, self._options.lack())
            self._warn_at = math.inf


def _records(group: Group) -> list[ArrayRecord]:
    """Return the arrays in a group's messages."""
    contents = [message.content for message in group.messages if message.has_content()]
    return [record for content in contents for record in content.array_records.values()]


def _kill(actor: Actor) -> None:
    """End an actor at once."""
    with suppress(Exception):  # it is gone already, or Ray is
        ray.kill(actor)
