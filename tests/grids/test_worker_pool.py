"""The pool of workers, with workers that do as they are told: orders of events that real ones show rarely."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from flwr.app import Context, RecordDict

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import Envelope
from heterofl_flwr.grids.runner import Group
from heterofl_flwr.grids.worker_pool import LOADS, Pool, Worker, WorkerDeathError

LONGEST = 30.0

pytestmark = pytest.mark.usefixtures("identity")


class Scripted(Worker):
    """A worker whose first answer waits for ``answers``, and that may die of it; its replacements fail, or wait."""

    def __init__(
        self, dies: bool = False, failures: int = 0, has_room: bool = True, error: type[Exception] = ConfigError
    ) -> None:
        self.dies, self.failures, self.has_room, self.error = dies, failures, has_room, error
        self.answers, self.waits, self.killed = threading.Event(), threading.Event(), threading.Event()
        self.starts = 0
        super().__init__()

    def start(self) -> None:
        self.starts += 1

    def load(self) -> bool:
        if 1 < self.starts <= 1 + self.failures:
            self._is_ended = True
            raise self.error(f"it died while it loaded, start {self.starts}")
        if self.starts > 1 and not self.has_room:
            self.waits.set()
            self.killed.wait(LONGEST)
            raise ConfigError("it was ended while it waited for room")
        return False

    def has_died(self, ask: bool) -> bool:
        return False

    def run(self, group, contexts):
        self.answers.wait(LONGEST)
        if self.dies:
            self.dies, self._is_ended = False, True
            raise WorkerDeathError("died: its machine is gone")
        return [Envelope(message, context) for message, context in zip(group.messages, contexts, strict=True)]

    def kill(self) -> None:
        self._is_ended = True
        self.killed.set()
        self.answers.set()

    def stop(self) -> None:
        pass


def groups_of(ask, number: int) -> list[Group]:
    groups = []
    for own in range(number):
        message = ask(own, "configs")
        message.metadata.__dict__["_message_id"] = f"message {own}"
        groups.append(Group(0, 0.0, own, [message]))
    return groups


def pool_of(*workers: Scripted) -> Pool:
    contexts = {node: Context(7, node, {"partition-id": node}, RecordDict(), {}) for node in range(4)}
    return Pool(workers, False, contexts, retries=2)


def begin(pool: Pool, groups: list[Group], *workers: Scripted) -> None:
    """Submit groups one by one, so that all workers have one."""
    for group in groups:
        pool.submit([group])
    until = time.monotonic() + LONGEST
    while len(pool._running) < len(workers) and time.monotonic() < until:
        time.sleep(0.001)


def test_a_worker_whose_replacement_finds_no_room_holds_no_message(ask):
    quick, dead = Scripted(), Scripted(dies=True, failures=1, has_room=False)
    pool = pool_of(quick, dead)
    try:
        groups = groups_of(ask, 2)
        begin(pool, groups, quick, dead)
        dead.answers.set()
        assert dead.waits.wait(LONGEST)  # the first replacement died while it loaded, the second finds no room
        quick.answers.set()
        ids = [id_ for group in groups for id_ in group.ids]
        replies = pool.collect(ids, time.monotonic() + LONGEST)
    finally:
        pool.close()
    assert [reply.metadata.message_id for reply in replies] == ids
    assert not any(reply.has_error() for reply in replies)
    assert len(pool.deaths) == 1


@pytest.mark.parametrize(
    ("failures", "error", "fails"),
    [(LOADS - 1, ConfigError, False), (LOADS, ConfigError, True), (LOADS, OSError, True)],
)
def test_a_replacement_that_fails_to_load_is_tried_again_before_a_message_fails(ask, failures, error, fails):
    worker = Scripted(dies=True, failures=failures, error=error)
    worker.answers.set()
    pool = pool_of(worker)
    try:
        (group,) = groups_of(ask, 1)
        pool.submit([group])
        (reply,) = pool.collect(group.ids, time.monotonic() + LONGEST)
    finally:
        pool.close()
    assert reply.has_error() == fails
    if fails:
        assert f"it died while it loaded, start {1 + LOADS}" in reply.error.reason


def test_a_listener_that_raises_costs_no_reply(ask, caplog):
    worker = Scripted()
    pool = pool_of(worker)
    pool.listener = lambda reply: 1 / 0
    try:
        groups = groups_of(ask, 2)
        begin(pool, groups, worker)
        threading.Timer(0.1, worker.answers.set).start()
        replies = pool.collect([id_ for group in groups for id_ in group.ids], math.inf)
    finally:
        pool.close()
    assert [reply.has_error() for reply in replies] == [False] * 2
    assert caplog.text.count("ZeroDivisionError") == 2


def test_nobody_waits_for_messages_that_another_thread_has_cancelled(ask):
    worker = Scripted()
    pool = pool_of(worker)
    with ThreadPoolExecutor() as executor:
        try:
            groups = groups_of(ask, 1)
            begin(pool, groups, worker)
            waiting = executor.submit(pool.wait, groups[0].ids, None)
            pool.cancel(groups[0].ids)
            assert waiting.result(LONGEST) == []
        finally:
            pool.close()
