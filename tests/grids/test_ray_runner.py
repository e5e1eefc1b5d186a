"""Actors that do as they are told: orders of events that real ones show rarely."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from flwr.app import Context, RecordDict

from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.grids.apps import Envelope
from heterofl_flwr.grids.queued import Group
from heterofl_flwr.grids.ray_runner import STARTS, ActorDeathError, ActorRunner, Ready

LONGEST = 30.0

pytestmark = pytest.mark.usefixtures("identity")


def die():
    raise ActorDeathError("died: its machine is gone")


class Scripted:
    """An actor that says what its test lets it say."""

    def __init__(self, report: Callable) -> None:
        self.report = report
        self.asked, self.busy, self.killed = threading.Semaphore(0), threading.Event(), threading.Event()
        self.envelopes: list[Envelope] = []
        self.ask()

    def ask(self) -> None:
        self.asked.release()

    def answer(self, envelopes, stored) -> None:
        self.envelopes = envelopes
        self.busy.set()

    def kill(self) -> None:
        self.killed.set()
        self.report(self, die)

    def get_ready(self, trouble: str = "") -> None:
        assert self.asked.acquire(timeout=LONGEST)
        self.report(self, lambda: Ready(trouble, False))

    def finish(self) -> None:
        assert self.busy.wait(LONGEST)
        self.busy.clear()
        self.report(self, lambda: self.envelopes)

    def die(self, of_work: bool = True) -> None:
        assert (self.busy.wait if of_work else self.asked.acquire)(timeout=LONGEST)
        self.report(self, die)


class Crew:
    """Scripted actors, in the order in which they were started; the first is ready at once."""

    def __init__(self) -> None:
        self.actors: list[Scripted] = []
        self._started = threading.Condition()

    def start(self, report: Callable) -> Scripted:
        with self._started:
            self.actors.append(Scripted(report))
            self._started.notify_all()
            if len(self.actors) == 1:
                self.actors[0].get_ready()
            return self.actors[-1]

    def __getitem__(self, number: int) -> Scripted:
        with self._started:
            assert self._started.wait_for(lambda: len(self.actors) > number, LONGEST)
            return self.actors[number]


@contextmanager
def crew_of(number: int, check: Callable[[], object] = lambda: None) -> Iterator[tuple[Crew, ActorRunner]]:
    """Start actors that are all ready."""
    crew = Crew()
    contexts = {node: Context(7, node, {"partition-id": node}, RecordDict(), {}) for node in range(4)}
    runner = ActorRunner(crew.start, number, contexts, lambda: "it lacks nothing", check)
    for other in range(1, number):
        crew[other].get_ready()
    with runner._changed:
        assert runner._changed.wait_for(lambda: len(runner._idle) == number, LONGEST)
    try:
        yield crew, runner
    finally:
        runner.close()


def groups_of(ask, number: int) -> list[Group]:
    groups = []
    for own in range(number):
        message = ask(own, "configs")
        message.metadata.__dict__["_message_id"] = f"message {own}"
        groups.append(Group(0, 0.0, own, [message]))
    return groups


def submit(runner: ActorRunner, groups: list[Group]) -> list[str]:
    runner.submit(groups)
    return [id_ for group in groups for id_ in group.ids]


def test_an_actor_that_finds_no_room_holds_no_message(ask):
    with crew_of(2) as (crew, runner):
        ids = submit(runner, groups_of(ask, 2))
        crew[1].die()
        crew[2].die(of_work=False)  # its replacement died while it loaded, and the next one finds no room
        crew[3]
        crew[0].finish()
        crew[0].finish()
        replies = runner.collect(ids, None)
    assert [reply.metadata.message_id for reply in replies] == ids
    assert not any(reply.has_error() for reply in replies)
    assert len(runner.deaths) == 1


def test_idle_actors_that_die_with_another_cost_no_try(ask):
    with crew_of(3) as (crew, runner):
        (group,) = groups_of(ask, 1)
        ids = submit(runner, [group])
        crew[2].die()
        for other in crew.actors[:2]:
            other.asked.acquire(timeout=LONGEST)
            other.report(other, die)
        crew[3].get_ready()
        crew[3].finish()
        assert not runner.collect(ids, None)[0].has_error()
    assert group.deaths == len(runner.deaths) == 1


def test_actors_that_no_longer_load_the_app_end_the_run(ask):
    with crew_of(1) as (crew, runner):
        ids = submit(runner, groups_of(ask, 1))
        crew[0].die()
        for number in range(1, STARTS + 1):
            crew[number].get_ready(f"no such module, start {number}")
        with pytest.raises(ConfigError, match=f"in an actor: no such module, start {STARTS}"):
            runner.collect(ids, None)


def test_a_ray_that_is_gone_ends_the_run(ask):
    def start(report: Callable) -> Scripted:
        raise OSError("the raylet is gone")

    with crew_of(1) as (crew, runner):
        ids = submit(runner, groups_of(ask, 1))
        runner._start = start
        crew[0].die()
        with pytest.raises(HeteroFLError, match="Ray cannot go on: the raylet is gone"):
            runner.collect(ids, None)


def test_what_others_cancel_is_not_waited_for(ask):
    with crew_of(1) as (crew, runner), ThreadPoolExecutor() as executor:
        ids = submit(runner, groups_of(ask, 1))
        assert crew[0].busy.wait(LONGEST)
        waiting = executor.submit(runner.wait, ids, None)
        runner.cancel(ids)
        assert waiting.result(LONGEST) == []
        assert crew[0].killed.wait(LONGEST)
        assert runner.deaths == []


def test_whoever_waits_hears_that_no_actor_will_answer(ask):
    alive = [True]

    def check():
        if not alive:
            raise HeteroFLError("its process raylet has ended")

    with crew_of(1, check) as (crew, runner):
        ids = submit(runner, groups_of(ask, 1))
        assert crew[0].busy.wait(LONGEST)
        alive.clear()
        with pytest.raises(HeteroFLError, match="Ray cannot go on: its process raylet has ended"):
            runner.wait(ids, None)
