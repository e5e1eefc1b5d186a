"""Clients in worker processes that live as long as the grid, one client at a time in each."""

import heapq
import threading
import time
from collections import deque
from collections.abc import Sequence

from flwr.app import Context, Message

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import UNKNOWN, Outcome, failure
from heterofl_flwr.grids.runner import Job, Runner
from heterofl_flwr.grids.worker import GRACE, Worker, is_inside


class Pool(Runner):
    """Runs clients in worker processes; a thread beside each worker hands it the most urgent job and takes the reply.

    A node's messages are answered in the order in which they were sent, so its context is never in two places.
    """

    def __init__(self, client_app: str, processes: int, contexts: dict[int, Context]) -> None:
        super().__init__(contexts)
        if is_inside():
            raise ConfigError(
                "processes: a worker process cannot have worker processes of its own. Expected the script that makes "
                'this grid to make it under `if __name__ == "__main__":`'
            )
        self._jobs: dict[str, Job] = {}
        self._lines: dict[int, deque[Job]] = {}  # by node; the first of each line is running, or ready
        self._ready: list[Job] = []  # a heap
        self._running: dict[str, Worker] = {}
        self._done: dict[str, Message] = {}
        self._lock = threading.RLock()  # see close
        self._work = threading.Condition(self._lock)  # what the threads wait for
        self._answers = threading.Condition(self._lock)  # what the callers wait for
        self._closed = False
        self._workers = _start(client_app, processes)
        self._threads = [threading.Thread(target=self._serve, args=(worker,), daemon=True) for worker in self._workers]
        for thread in self._threads:
            thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; idle workers begin at once."""
        with self._lock:
            for job in jobs:
                self._jobs[job.id] = job
                line = self._lines.setdefault(job.node_id, deque())
                line.append(job)
                if len(line) == 1:
                    self._get_ready(job)

    def poll(self, ids: Sequence[str]) -> dict[str, Message]:
        """Hand over those replies that are there."""
        return self.collect(ids, time.monotonic())

    def collect(self, ids: Sequence[str], deadline: float | None) -> dict[str, Message]:
        """Wait for these replies."""
        with self._answers:
            self._answers.wait_for(
                lambda: self._closed or all(id_ in self._done for id_ in ids),
                None if deadline is None else max(0.0, deadline - time.monotonic()),
            )
            return {id_: self._done.pop(id_) for id_ in ids if id_ in self._done}

    def cancel(self, ids: Sequence[str]) -> None:
        """Drop these messages; a client that is at work on one is ended, with its process."""
        with self._lock:
            for id_ in ids:
                self._done.pop(id_, None)
                if job := self._jobs.get(id_):
                    job.dropped = True
                if worker := self._running.get(id_):
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
        """Let the worker answer the next message; False when there will be none."""
        job = self._take(worker)
        if job is None:
            return False
        try:
            outcome = worker.run(job.message, self._contexts[job.node_id])
        except Exception as error:  # such as a message that cannot be pickled; the thread has to go on
            outcome = failure(job.message, UNKNOWN, f"{type(error)}:<'{error}'>")
        self._finish(job, outcome)
        return True

    def _take(self, worker: Worker) -> Job | None:
        """Wait for a job; None when the pool closes."""
        with self._work:
            while True:
                self._work.wait_for(lambda: self._closed or self._ready)
                if self._closed:
                    return None
                job = heapq.heappop(self._ready)
                if not job.dropped:
                    self._running[job.id] = worker
                    return job
                self._leave(job)

    def _finish(self, job: Job, outcome: Outcome) -> None:
        with self._lock:
            del self._running[job.id]
            if not job.dropped and not self._closed:
                self._done[job.id] = self._settle(job, outcome)
            self._leave(job)
            self._answers.notify_all()

    def _leave(self, job: Job) -> None:
        """Take a job out of its node's line; the next one there gets ready."""
        del self._jobs[job.id]
        line = self._lines[job.node_id]
        line.popleft()
        if line:
            self._get_ready(line[0])
        else:
            del self._lines[job.node_id]

    def _get_ready(self, job: Job) -> None:
        heapq.heappush(self._ready, job)
        self._work.notify()


def _start(client_app: str, processes: int) -> list[Worker]:
    """Start workers together, and wait until all have loaded the ClientApp."""
    workers: list[Worker] = []
    try:
        for _ in range(processes):
            workers.append(Worker(client_app))
        for worker in workers:
            worker.ready()
    except BaseException:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.stop()
        raise
    return workers
