"""Clients in workers that live as long as the grid, one group at a time in each; a worker is a process or an actor."""

import heapq
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from flwr.app import Context, Message

from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.grids.apps import CRASHED, NOT_LOADED, UNKNOWN, Outcome, failure
from heterofl_flwr.grids.runner import Group, Runner

GRACE = 2.0  # seconds that an idle worker has to leave by itself

logger = logging.getLogger(__name__)


class WorkerDeathError(HeteroFLError):
    """A worker has died while it answered messages; the text says how, after "the process that ran node 1"."""


class Worker(ABC):
    """Answers one group of messages at a time, elsewhere."""

    @abstractmethod
    def revive(self) -> None:
        """Replace what is known to have died; raise ConfigError where the new one cannot load the ClientApp."""

    @abstractmethod
    def check(self) -> None:
        """Find out whether it is alive, and replace it if it is not."""

    @abstractmethod
    def run(self, group: Group, contexts: Sequence[Context]) -> list[Outcome]:
        """Return what comes of the messages; raise WorkerDeathError if it died of them."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once. Callable from any thread; ``revive`` or ``stop`` must follow."""

    @abstractmethod
    def stop(self) -> object:
        """End it for good, an idle one with some patience."""

    @abstractmethod
    def share(self, groups: Sequence[Group]) -> None:
        """Note in groups that are pushed together what they have in common; any worker may answer them."""


class Pool(Runner):
    """Runs clients in workers; a thread beside each hands it the most urgent group and takes the replies.

    A node's messages are answered in the order in which they were sent, so its context is never in two places.

    Parameters
    ----------
    workers : sequence of Worker
        Those that answer. They are the pool's to end.
    takes_groups : bool
        Whether the ClientApp answers messages together.
    contexts : dict
        The nodes' contexts.
    retries : int
        How often a message of a worker that died is given to another, before its reply is an error.
    """

    def __init__(
        self, workers: Sequence[Worker], takes_groups: bool, contexts: dict[int, Context], retries: int = 0
    ) -> None:
        super().__init__(contexts)
        self._groups: dict[str, Group] = {}  # by the id of each message
        self._lines: dict[int, deque[Group]] = {}  # by node; a group that is first in all its lines is running or ready
        self._ready: list[Group] = []  # a heap
        self._running: dict[int, Worker] = {}  # by the number of the group
        self._lock = threading.RLock()  # see close
        self._work = threading.Condition(self._lock)  # what the threads wait for
        self._answers = threading.Condition(self._lock)  # what the callers wait for
        self._closed = False
        self._workers, self._takes_groups, self._retries = workers, takes_groups, retries
        self._idle: set[Worker] = set()
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers]
        for thread in self._threads:
            thread.start()

    @property
    def takes_groups(self) -> bool:
        """Whether the ClientApp answers messages together."""
        return self._takes_groups

    def submit(self, groups: Sequence[Group]) -> None:
        """Queue groups; idle workers begin at once."""
        self._workers[0].share(groups)
        with self._lock:
            for group in groups:
                self._groups.update(dict.fromkeys(group.ids, group))
                for node_id in group.nodes:
                    self._lines.setdefault(node_id, deque()).append(group)
                self._look(group)

    def poll(self, ids: Sequence[str]) -> dict[str, Message]:
        """Hand over those replies that are there."""
        return self.collect(ids, time.monotonic())

    def wait(self, ids: Sequence[str], deadline: float | None) -> list[str]:
        """Wait for these replies."""
        with self._answers:
            self._answers.wait_for(
                lambda: self._closed or all(id_ in self._done for id_ in ids),
                None if deadline is None else max(0.0, deadline - time.monotonic()),
            )
            return [id_ for id_ in ids if id_ in self._done]

    def cancel(self, ids: Sequence[str]) -> None:
        """Drop these messages; clients that are at work on a group of them are ended, with their process."""
        with self._lock:
            for id_ in ids:
                self._done.pop(id_, None)
            waiting = {id_: self._groups[id_] for id_ in ids if id_ in self._groups}
            for id_, group in waiting.items():
                group.dropped.add(id_)
            for group in {group.number: group for group in waiting.values() if group.is_dropped}.values():
                if worker := self._running.get(group.number):
                    worker.kill()

    def close(self) -> None:
        """End the workers and the threads."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                if worker not in self._idle:
                    worker.kill()
            self._work.notify_all()
            self._answers.notify_all()
        if threading.current_thread() in self._threads:  # the garbage collector found the grid, and may hold the lock
            return
        for thread, worker in zip(self._threads, self._workers, strict=True):
            while thread.is_alive():
                thread.join(2 * GRACE)
                worker.kill()

    def _serve(self, worker: Worker) -> None:
        try:
            while self._serve_one(worker):
                pass
        finally:
            worker.stop()

    def _serve_one(self, worker: Worker) -> bool:
        """Let the worker answer the next group; False when there will be none."""
        with suppress(ConfigError):  # which the next group is told
            if not self._closed:
                worker.revive()  # before it takes a group: this may take long, and others can answer that
        group = self._take(worker)
        if group is None:
            return False
        try:
            (worker.check if group.deaths else worker.revive)()
            outcomes = worker.run(group, [self._contexts[node_id] for node_id in group.nodes])
        except WorkerDeathError as death:
            if self._retry(group, death):
                return True
            outcomes = [failure(message, CRASHED, self._obituary(message, group, death)) for message in group.messages]
        except ConfigError as error:
            outcomes = [failure(message, NOT_LOADED, str(error)) for message in group.messages]
        except Exception as error:  # such as a message that cannot be pickled; the thread has to go on
            outcomes = [failure(message, UNKNOWN, f"{type(error)}:<'{error}'>") for message in group.messages]
        self._finish(group, outcomes)
        return True

    def _take(self, worker: Worker) -> Group | None:
        """Wait for a group; None when the pool closes."""
        with self._work:
            self._idle.add(worker)
            while True:
                self._work.wait_for(lambda: self._closed or self._ready)
                if self._closed:
                    return None
                group = heapq.heappop(self._ready)
                if not group.is_dropped:
                    self._idle.remove(worker)
                    self._running[group.number] = worker
                    return group
                self._leave(group)

    def _retry(self, group: Group, death: WorkerDeathError) -> bool:
        """Let another worker answer a group, if it may; the nodes' contexts are as they were."""
        with self._lock:
            if self._closed or group.is_dropped:
                return False
            self.deaths.append(self._obituary(group.messages[0], group, death))
            if group.deaths == self._retries:
                return False
            group.deaths += 1
            logger.warning("%s Another one is given its messages.", self.deaths[-1])
            del self._running[group.number]
            heapq.heappush(self._ready, group)
            self._work.notify()
            return True

    def _obituary(self, message: Message, group: Group, death: WorkerDeathError) -> str:
        """Name the node that a worker ran, maybe among others, and say how it died."""
        node_id, others = message.metadata.dst_node_id, len(group.messages) - 1
        partition = self._contexts[node_id].node_config.get("partition-id")
        among = f" and {others} others" if others else ""
        before = f" {group.deaths} before it died as well." if group.deaths else ""
        return f"The process that ran node {node_id} (partition {partition}){among} {death}.{before}"

    def _finish(self, group: Group, outcomes: Sequence[Outcome]) -> None:
        with self._lock:
            del self._running[group.number]
            for id_, message, outcome in zip(group.ids, group.messages, outcomes, strict=True):
                if id_ not in group.dropped and not self._closed:
                    self._done[id_] = self._settle(message, outcome)
            self._leave(group)
            self._answers.notify_all()

    def _leave(self, group: Group) -> None:
        """Take a group out of its nodes' lines; the next ones there may get ready."""
        for id_, node_id in zip(group.ids, group.nodes, strict=True):
            del self._groups[id_]
            line = self._lines[node_id]
            line.popleft()
            if line:
                self._look(line[0])
            else:
                del self._lines[node_id]

    def _look(self, group: Group) -> None:
        """Queue a group for the workers if it is first in all its lines."""
        if all(self._lines[node_id][0] is group for node_id in group.nodes):
            heapq.heappush(self._ready, group)
            self._work.notify()
