"""The Ray actors of a ``RayGrid``, and the messages that they get."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from flwr.app import ArrayRecord, Context

from heterofl_flwr.common.errors import ConfigError, HeteroFLError, listed
from heterofl_flwr.grids.call_app import Envelope, failure
from heterofl_flwr.grids.queued import Group, Runner
from heterofl_flwr.grids.ray_actors import Actor, ActorOptions, pack, unpack
from heterofl_flwr.grids.ray_session import check_alive
from heterofl_flwr.transport.arrays import count_bytes
from heterofl_flwr.transport.compat import ErrorCode
from heterofl_flwr.transport.reading import array_records

logger = logging.getLogger(__name__)

RETRIES = 2
"""Largest number of times that a group of messages is given to another actor because its actor has died."""

STARTS = 3
"""Largest number of times in a row that an actor is replaced because it could not start."""

PATIENCE = 60.0
"""Seconds to wait for the start of an actor until a warning with the resources of the cluster is logged."""

TURN = 1.0
"""Seconds between two checks of Ray's processes while a caller waits."""

LARGE = 1 << 16
"""Size in bytes from which a record is stored once in Ray, and not pickled with each message."""

Reference = Any
"""Ray's reference to a future result."""


class ActorPool(Runner):
    """Pool of Ray actors, each of which runs one group of messages at a time.

    It has no thread: it works only while its methods are called.
    """

    def __init__(self, options: ActorOptions, number: int, contexts: dict[int, Context]) -> None:
        super().__init__(contexts)
        self._options = options
        self.gpu_workers = number if options.num_gpus else 1
        self._waiting: list[Group] = []  # sorted
        self._idle: list[Actor] = []
        self._running: dict[Reference, tuple[Actor, Group | None]] = {}  # group None: the call is Clients.ready
        self._logs: dict[Actor, Path] = {}  # files with the stderr of actors
        self._is_loaded, self._failed_starts = False, 0  # True once an actor was ready; failed starts in a row
        self._warn_at = time.monotonic() + PATIENCE
        self._lock = threading.RLock()  # Flower's classic server calls from several threads
        try:
            for _ in range(number):
                self._ask(options.start())
            while not self._idle:
                self._step(TURN)
        except BaseException:
            self.close()
            raise

    def submit(self, groups: Sequence[Group]) -> None:
        """Queue groups of messages, and send waiting groups to idle actors."""
        with self._lock:
            stored: dict[int, Reference] = {}
            urgency: dict[int, float] = {}
            for group in groups:
                self._groups.update(dict.fromkeys(group.ids, group))
                # A group sorts behind earlier messages to its nodes: its urgency number is not below theirs.
                group.urgency = max([group.urgency, *(urgency.get(node_id, -math.inf) for node_id in group.nodes)])
                urgency.update(dict.fromkeys(group.nodes, group.urgency))
                for record in _records(group):
                    if id(record) not in stored and count_bytes(record) >= LARGE:
                        stored[id(record)] = ray.put(record)
                group.stored = stored
            self._waiting = sorted([*self._waiting, *groups])
            self._step(0.0)

    def wait(self, ids: Sequence[str], deadline: float) -> list[str]:
        """Wait at most until ``deadline`` (``time.monotonic``) for all replies; return the ids of answered messages."""
        seconds = math.inf
        while seconds > 0 and not self._groups.keys().isdisjoint(ids):
            seconds = deadline - time.monotonic()
            with self._lock:
                self._step(min(max(seconds, 0.0), TURN))
        return [id_ for id_ in ids if id_ in self._done]

    def cancel(self, ids: Sequence[str]) -> None:
        """Forget these messages. Replace an actor if all messages that it runs are forgotten."""
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
        """Send waiting groups to idle actors, wait up to ``seconds`` for a result, and process results."""
        self._hand_out()
        running = list(self._running)
        if running:
            ray.wait(running, timeout=seconds)
            for reference in ray.wait(running, num_returns=len(running), timeout=0)[0]:
                self._accept(reference, *self._running.pop(reference))
        try:
            check_alive()
        except HeteroFLError:
            # Else close() or cancel() would kill these actors, a call in which Ray hangs or ends this process.
            self._running, self._idle = {}, []
            raise
        self._warn_if_none_starts()
        self._hand_out()

    def _hand_out(self) -> None:
        while self._idle and (group := self._take_next()) is not None:
            actor = self._idle.pop()
            try:
                self._running[self._send(actor, group)] = actor, group
            except Exception as error:  # such as a message that cannot be pickled
                self._idle.append(actor)
                self._keep(group, [failure(message, ErrorCode.UNKNOWN, error) for message in group.messages])

    def _take_next(self) -> Group | None:
        """Return, and remove, the first group whose nodes are neither busy nor in an earlier waiting group, or None."""
        busy = {node_id for _, group in self._running.values() if group is not None for node_id in group.nodes}
        for place, group in enumerate(self._waiting):
            if busy.isdisjoint(group.nodes):
                return self._waiting.pop(place)
            busy.update(group.nodes)
        return None

    def _send(self, actor: Actor, group: Group) -> Reference:
        """Send a group to an actor, large records by reference. Return the reference to the replies."""
        references = {id_: group.stored[id_] for id_ in map(id, _records(group)) if id_ in group.stored}
        numbers = {id_: number for number, id_ in enumerate(references)}
        pairs = zip(group.messages, group.nodes, strict=True)
        pickled = [pack(Envelope(message, self._contexts[node_id]), numbers) for message, node_id in pairs]
        return actor.answer.remote(pickled, *references.values())

    def _accept(self, reference: Reference, actor: Actor, group: Group | None) -> None:
        """Process the result of an actor's call, or the actor's death. If ``group`` is None, the call was ``ready``."""
        try:
            result = ray.get(reference)
            answers = [] if group is None else list(map(unpack, result))
        except Exception as error:  # the actor has died, or its reply cannot be unpickled
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
        """Process the result of ``Clients.ready``: make the actor idle, or handle its failed start."""
        if trouble:
            self._accept_failed_start(actor, trouble)
            return
        self.takes_groups, self._is_loaded, self._failed_starts = takes_groups, True, 0
        self._logs[actor] = Path(log)
        self._idle.append(actor)

    def _accept_failed_start(self, actor: Actor, trouble: str) -> None:
        """Count a failed start, and replace the actor if at most ``STARTS`` starts in a row have failed.

        After more failed starts, go on with the other actors, or raise ``ConfigError`` if no other actor is left. If no
        actor has ever started, raise ``ConfigError`` at once.
        """
        self._failed_starts += 1
        if self._is_loaded and self._failed_starts <= STARTS:
            logger.warning("An idle actor is replaced: %s.", trouble)
            self._replace(actor)
        elif not self._is_loaded or not (self._idle or self._running):
            raise ConfigError(f"in an actor: {trouble}")

    def _accept_death(self, actor: Actor, group: Group | None, error: Exception) -> None:
        """Replace an actor that died while it ran ``group``; if ``group`` is None, handle a failed start instead.

        When a group's actor has died, also call ``ready`` of all idle actors, because they may have died too. Queue the
        group again, at most ``RETRIES`` times. After that, its messages get error replies.
        """
        death = self._describe_end(actor, error)
        if group is None:
            self._accept_failed_start(actor, f"it {death} while it loaded the ClientApp")
            return
        self._replace(actor)
        for idle in self._idle:  # an idle actor may have died of the same cause
            self._ask(idle)
        self._idle.clear()
        if group.deaths < RETRIES:
            logger.warning("%s Another one is given its messages.", self._describe(group, death))
            group.deaths += 1
            self._waiting = sorted([group, *self._waiting])
        else:
            code, text = ErrorCode.CLIENT_APP_CRASHED, self._describe(group, death)
            self._keep(group, [failure(message, code, text) for message in group.messages])

    def _ask(self, actor: Actor) -> None:
        self._running[actor.ready.remote()] = actor, None

    def _replace(self, actor: Actor) -> None:
        _kill(actor)
        self._logs.pop(actor, None)
        self._warn_at = time.monotonic() + PATIENCE  # a replacement has as long to start as the first actors had
        self._ask(self._options.start())

    def _is_awaited(self, group: Group) -> bool:
        """Return True if at least one message of a group is neither answered nor cancelled."""
        return any(id_ in self._groups for id_ in group.ids)

    def _describe(self, group: Group, death: str) -> str:
        partitions = {node_id: self._contexts[node_id].node_config.get("partition-id") for node_id in group.nodes}
        clients = listed(f"node {node_id} (partition {partition})" for node_id, partition in partitions.items())
        before = f" {group.deaths} before it died as well." if group.deaths else ""
        return f"The process that ran {clients} {death}.{before}"

    def _describe_end(self, actor: Actor, error: Exception) -> str:
        """Return a text on the death of an actor, with the last lines of its stderr."""
        text = " ".join(line.strip() for line in str(error).splitlines() if not line.startswith("\t"))
        text = text.rpartition("Worker exit detail:")[2].partition("Some common causes include:")[0]
        log = self._logs.get(actor, Path())
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        lines = [line.strip() for line in lines if line.strip() and not line.startswith(":")]  # Ray's own have a colon
        end = f" (its last lines: {' | '.join(lines[-5:])})" if lines else ""
        return f"died: {text.strip().rstrip('.')}{end}"

    def _warn_if_none_starts(self) -> None:
        none_is_ready = not self._idle and all(group is None for _, group in self._running.values())
        if time.monotonic() > self._warn_at and none_is_ready:
            logger.warning("no actor has started in %g s; waiting: %s", PATIENCE, self._options.lack())
            self._warn_at = math.inf


def _records(group: Group) -> list[ArrayRecord]:
    contents = [message.content for message in group.messages if message.has_content()]
    return [record for content in contents for record in array_records(content).values()]


def _kill(actor: Actor) -> None:
    with suppress(Exception):  # the actor or Ray has ended already
        ray.kill(actor)
