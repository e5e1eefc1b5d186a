"""Clients in worker processes that live as long as the grid, one group at a time in each."""

import heapq
import threading
import time
from collections import deque
from collections.abc import Sequence

from flwr.app import Context, Message

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import UNKNOWN, Outcome, failure
from heterofl_flwr.grids.groups import Group
from heterofl_flwr.grids.runner import Runner
from heterofl_flwr.grids.wire import Shared
from heterofl_flwr.grids.worker import GRACE, Worker, is_inside


class Pool(Runner):
    """Runs clients in worker processes; a thread beside each hands it the most urgent group and takes the replies.

    A node's messages are answered in the order in which they were sent, so its context is never in two places.
    """

    def __init__(self, client_app: str, processes: int, contexts: dict[int, Context]) -> None:
        super().__init__(contexts)
        if is_inside():
            raise ConfigError(
                "processes: a worker process cannot have worker processes of its own. Expected the script that makes "
                'this grid to make it under `if __name__ == "__main__":`'
            )
        self._groups: dict[str, Group] = {}  # by the id of each message
        self._lines: dict[int, deque[Group]] = {}  # by node; a group that is first in all its lines is running or ready
        self._ready: list[Group] = []  # a heap
        self._running: dict[int, Worker] = {}  # by the number of the group
        self._lock = threading.RLock()  # see close
        self._work = threading.Condition(self._lock)  # what the threads wait for
        self._answers = threading.Condition(self._lock)  # what the callers wait for
        self._closed = False
        self._workers, self._takes_groups = _start(client_app, processes)
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers]
        for thread in self._threads:
            thread.start()

    @property
    def takes_groups(self) -> bool:
        """Whether the ClientApp answers messages together."""
        return self._takes_groups

    def submit(self, groups: Sequence[Group]) -> None:
        """Queue groups; idle workers begin at once."""
        shared = Shared.among(message for group in groups for message in group.messages)
        with self._lock:
            for group in groups:
                group.shared = shared
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
        """End the worker processes and the threads."""
        with self._lock:
            self._closed = True
            for worker in self._running.values():
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
        group = self._take(worker)
        if group is None:
            return False
        contexts = [self._contexts[node_id] for node_id in group.nodes]
        try:
            outcomes = worker.run(group.messages, contexts, group.shared)
        except Exception as error:  # such as a message that cannot be pickled; the thread has to go on
            outcomes = [failure(message, UNKNOWN, f"{type(error)}:<'{error}'>") for message in group.messages]
        self._finish(group, outcomes)
        return True

    def _take(self, worker: Worker) -> Group | None:
        """Wait for a group; None when the pool closes."""
        with self._work:
            while True:
                self._work.wait_for(lambda: self._closed or self._ready)
                if self._closed:
                    return None
                group = heapq.heappop(self._ready)
                if not group.is_dropped:
                    self._running[group.number] = worker
                    return group
                self._leave(group)

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


def _start(client_app: str, processes: int) -> tuple[list[Worker], bool]:
    """Start workers together; wait until all have loaded the ClientApp, and ask whether it answers groups."""
    workers: list[Worker] = []
    try:
        for _ in range(processes):
            workers.append(Worker(client_app))
        takes_groups = [worker.ready() for worker in workers]
    except BaseException:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.stop()
        raise
    return workers, all(takes_groups)
