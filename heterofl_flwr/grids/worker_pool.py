"""A pool of workers that run a grid's clients and live as long as the grid: one that dies is replaced."""

import heapq
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

from flwr.app import Context, Message

from heterofl_flwr.compat import ErrorCode
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.grids.apps import Envelope, failure
from heterofl_flwr.grids.payloads import Slice, find_slice
from heterofl_flwr.grids.runner import Group, Runner

logger = logging.getLogger(__name__)

GRACE = 2.0  # seconds that an idle worker has to leave by itself
LOADS = 3  # how often a worker is started that fails before it has loaded the ClientApp


class WorkerDeathError(HeteroFLError):
    """A worker has died while it answered messages; the text says how, after "the process that ran node 1"."""


class Worker(ABC):
    """Answers one group of messages at a time in another process, which is replaced when it has died."""

    def __init__(self) -> None:
        self._is_ended = False
        self.start()

    def is_found_dead(self, ask: bool) -> bool:
        """Return whether a worker that was ready has died since; ``ask`` it for a sign of life."""
        self._is_ended = self._is_ended or self.has_died(ask)
        return self._is_ended

    def revive(self) -> None:
        """Replace what has died; raise ConfigError where the new one cannot load the ClientApp."""
        if self._is_ended or self.has_died(ask=False):
            self.stop()
            self._is_ended = False
            self.start()
            if self._is_ended:  # meanwhile, from another thread, which did not know the new process
                self.kill()
        self.load()

    @abstractmethod
    def start(self) -> None:
        """Start the process."""

    @abstractmethod
    def load(self) -> bool:
        """Wait until it has loaded the ClientApp; return whether that answers messages together."""

    @abstractmethod
    def has_died(self, ask: bool) -> bool:
        """Return whether it is known to have died; ``ask`` it for a sign of life where that takes a message."""

    @abstractmethod
    def run(self, group: Group, contexts: Sequence[Context]) -> list[Envelope]:
        """Return the answers to the messages; raise WorkerDeathError if it died of them."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once. Callable from any thread; ``revive`` or ``stop`` must follow."""

    @abstractmethod
    def stop(self) -> object:
        """End it for good, an idle one with some patience."""


@contextmanager
def ended_on_error(workers: Sequence[Worker]) -> Iterator[None]:
    """End workers that cannot all be started."""
    try:
        yield
    except BaseException:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.stop()
        raise


class Pool(Runner):
    """Runs clients in workers; a thread beside each hands it the most urgent group and accepts the replies.

    A node's messages are answered in the order in which they were sent, so its context is never in two places.

    A message of a worker that died is given to others ``retries`` times, before its reply is an error. The pool ends
    its workers, and calls ``on_close`` when they have ended.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        takes_groups: bool,
        contexts: dict[int, Context],
        *,
        retries: int = 0,
        on_close: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(contexts, takes_groups)
        self._slices: WeakValueDictionary[tuple[int, ...], Slice] = WeakValueDictionary()
        self._lines: dict[int, deque[Group]] = {}  # by node; a group that is first in all its lines is running or ready
        self._ready: list[Group] = []  # a heap
        self._running: dict[int, Worker] = {}  # by the number of the group
        self._lock = threading.RLock()  # see close
        self._work = threading.Condition(self._lock)  # what the threads wait for
        self._answers = threading.Condition(self._lock)  # what the callers wait for
        self._closed = False
        self._workers, self._retries, self._on_close = workers, retries, on_close
        self._idle: set[Worker] = set()
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers]
        for thread in self._threads:
            thread.start()

    def submit(self, groups: Sequence[Group]) -> None:
        """Queue groups; idle workers begin at once."""
        with self._lock:
            for group in groups:
                group.slices = [find_slice(message, self._slices) for message in group.messages]
                self._groups.update(dict.fromkeys(group.ids, group))
                for node_id in group.nodes:
                    self._lines.setdefault(node_id, deque()).append(group)
                self._queue_if_first(group)

    def wait(self, ids: Sequence[str], deadline: float | None) -> list[str]:
        """Wait for these replies, while there is a message among these that somebody waits for."""
        with self._answers:
            seconds = None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            self._answers.wait_for(lambda: self._closed or self._groups.keys().isdisjoint(ids), seconds)
            return [id_ for id_ in ids if id_ in self._done]

    def cancel(self, ids: Sequence[str]) -> None:
        """Drop these messages; clients that are at work on a group of them are ended, with their process."""
        with self._lock:
            groups = {group.number: group for id_ in ids if (group := self._groups.get(id_))}
            super().cancel(ids)
            for number, group in groups.items():
                if not self._is_awaited(group) and (worker := self._running.get(number)):
                    worker.kill()
            self._answers.notify_all()

    def close(self) -> None:
        """End the workers and the threads."""
        with self._lock:
            self._closed = True
            super().close()
            for worker in self._workers:
                if worker not in self._idle:
                    worker.kill()
            self._work.notify_all()
            self._answers.notify_all()
        # In one of these threads, it was the garbage collector that found the grid, and it may hold the lock.
        if threading.current_thread() not in self._threads:
            for thread, worker in zip(self._threads, self._workers, strict=True):
                while thread.is_alive():
                    thread.join(2 * GRACE)
                    worker.kill()
        self._on_close()

    def _serve(self, worker: Worker) -> None:
        try:
            while self._serve_one(worker):
                pass
        finally:
            worker.stop()

    def _serve_one(self, worker: Worker) -> bool:
        """Let the worker answer the next group; False when there will be none."""
        trouble = self._make_ready(worker)  # before it has a group: this may take long, and others can answer that
        group = self._next_group(worker)
        if group is None:
            return False
        if trouble is None and worker.is_found_dead(ask=group.deaths > 0):
            self._requeue(group)  # for the others: there may never be room for this one's replacement
            return True
        try:
            if trouble is not None:
                raise trouble
            answers = worker.run(group, [self._contexts[node_id] for node_id in group.nodes])
        except WorkerDeathError as death:
            if self._retry(group, death):
                return True
            code = ErrorCode.CLIENT_APP_CRASHED
            answers = [failure(message, code, self._describe(message, group, death)) for message in group.messages]
        except ConfigError as error:
            answers = [failure(one, ErrorCode.LOAD_CLIENT_APP_EXCEPTION, str(error)) for one in group.messages]
        except Exception as error:  # such as a message that cannot be pickled; the thread has to go on
            answers = [failure(message, ErrorCode.UNKNOWN, error) for message in group.messages]
        with self._lock:
            del self._running[group.number]
            self._keep(group, answers)
            self._leave_lines(group)
            self._answers.notify_all()
        return True

    def _make_ready(self, worker: Worker) -> Exception | None:
        """Replace a worker that has died; return why it cannot be started or load the ClientApp, even after some tries.

        A single try is not enough: what is started may die with a machine whose end is not known yet.
        """
        trouble = None
        for _ in range(LOADS):
            if self._closed:
                break
            try:
                worker.revive()
            except Exception as error:  # such as an OSError: the machine has no memory left for another process
                trouble = error
            else:
                return None
        return trouble

    def _next_group(self, worker: Worker) -> Group | None:
        """Wait for a group; None when the pool closes."""
        with self._work:
            self._idle.add(worker)
            while True:
                self._work.wait_for(lambda: self._closed or self._ready)
                if self._closed:
                    return None
                group = heapq.heappop(self._ready)
                if self._is_awaited(group):
                    self._idle.remove(worker)
                    self._running[group.number] = worker
                    return group
                self._leave_lines(group)

    def _is_awaited(self, group: Group) -> bool:
        """Return whether somebody waits for a reply; then all are answered, so that those who wait get the same."""
        return any(id_ in self._groups for id_ in group.ids)

    def _retry(self, group: Group, death: WorkerDeathError) -> bool:
        """Let another worker answer a group, if it may; the nodes' contexts are as they were."""
        with self._lock:
            if self._closed or not self._is_awaited(group):
                return False
            self.deaths.append(self._describe(group.messages[0], group, death))
            if group.deaths == self._retries:
                return False
            group.deaths += 1
            logger.warning("%s Another one is given its messages.", self.deaths[-1])
            self._requeue(group)
            return True

    def _requeue(self, group: Group) -> None:
        """Give back a group that was not answered."""
        with self._lock:
            del self._running[group.number]
            heapq.heappush(self._ready, group)
            self._work.notify()

    def _describe(self, message: Message, group: Group, death: WorkerDeathError) -> str:
        """Name the node that a worker ran, maybe among others, and say how it died."""
        node_id, others = message.metadata.dst_node_id, len(group.messages) - 1
        partition = self._contexts[node_id].node_config.get("partition-id")
        among = f" and {others} others" if others else ""
        before = f" {group.deaths} before it died as well." if group.deaths else ""
        return f"The process that ran node {node_id} (partition {partition}){among} {death}.{before}"

    def _leave_lines(self, group: Group) -> None:
        """Remove a group from its nodes' lines; the next ones there may get ready."""
        for node_id in group.nodes:
            line = self._lines[node_id]
            line.popleft()
            if line:
                self._queue_if_first(line[0])
            else:
                del self._lines[node_id]

    def _queue_if_first(self, group: Group) -> None:
        """Queue a group for the workers if it is first in all its lines."""
        if all(self._lines[node_id][0] is group for node_id in group.nodes):
            heapq.heappush(self._ready, group)
            self._work.notify()
