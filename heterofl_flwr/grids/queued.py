"""``QueuedGrid``: Flower's Grid interface over clients that a runner of ours runs."""

import itertools
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from flwr.app import Context, Message, RecordDict, UserConfigValue
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from heterofl_flwr.core.randomness import derive
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.grids.apps import Identity
from heterofl_flwr.grids.runner import Group, Runner, together

Contexts = dict[int, Context]


class QueuedGrid(Grid):
    """What the grids that run clients themselves have in common; they differ in what runs the clients.

    Parameters
    ----------
    start : callable
        From the nodes' contexts, which it keeps, to what runs the clients.
    num_nodes, cohort, node_config, run_config, cost, seed
        As for ``LocalGrid``.
    """

    def __init__(
        self,
        start: Callable[[Contexts], Runner],
        num_nodes: int,
        *,
        cohort: int | Callable[[Message], int] = 1,
        node_config: Callable[[int], Mapping[str, UserConfigValue]] | None = None,
        run_config: Mapping[str, UserConfigValue] | None = None,
        cost: Callable[[Message], float] | None = None,
        seed: int = 0,
    ) -> None:
        check_count("num_nodes", num_nodes, 1)
        self._cohort = cohort if callable(cohort) else _always(cohort)
        self._node_configs = {
            derive(seed, "node", partition): {
                "partition-id": partition,
                "num-partitions": num_nodes,
                **_checked(node_config(partition) if node_config else {}, f"node_config({partition})"),
            }
            for partition in range(num_nodes)
        }
        self._run_config = _checked(run_config or {}, "run_config")
        self._cost = cost or (lambda message: 0.0)
        self._numbers = itertools.count(1)  # of messages, groups and pushes
        self._contexts: Contexts = {}
        self._renew(Run.create_empty(derive(seed, "run")))
        self._runner = start(self._contexts)
        self._identity = Identity(self._run.run_id)
        self._finalizer = weakref.finalize(self, _close, self._runner, self._identity)

    def __enter__(self) -> Self:
        """Return the grid."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the grid."""
        self.close()

    def close(self) -> None:
        """End the worker processes, busy or not, and give Flower's task identity back. More calls do nothing."""
        self._finalizer()

    @property
    def run(self) -> Run:
        """The run, as Flower describes runs."""
        return Run(**vars(self._run))

    @property
    def deaths(self) -> Sequence[str]:
        """A sentence for each worker that died while it answered messages."""
        return tuple(self._runner.deaths)

    def set_run(self, run: Run) -> None:
        """Begin another run: every node starts with an empty state."""
        self._renew(run)
        self._identity.take(run.run_id)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message; Flower prefers ``Message(...)``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, in the order of their partitions."""
        return list(self._node_configs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids. Worker processes begin at once."""
        if not self._finalizer.alive:
            raise HeteroFLError(f"this {type(self).__name__} is closed; messages need an open one")
        messages = list(messages)
        ids = [self._admit(message) for message in messages]
        self._runner.submit(self._groups(messages))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that are there; without worker processes, run the clients now."""
        ids = list(message_ids)
        replies = self._runner.poll(ids)
        return [replies[id_] for id_ in ids if id_ in replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies in the order of the messages.

        After ``timeout`` seconds, clients that were not begun are left out, and so are those still at work in worker
        processes, which are ended. In this process, a client cannot be interrupted.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ids = list(self.push_messages(messages))
        del messages
        try:
            replies = self._runner.collect(ids, deadline)
        finally:
            self._runner.cancel(ids)
        return [replies[id_] for id_ in ids if id_ in replies]

    def wait_for_replies(self, message_ids: Iterable[str], timeout: float | None = None) -> list[str]:
        """Wait until these messages are answered, or ``timeout`` seconds; return the ids of those that are.

        Their replies can then be pulled. Not part of Flower's interface; ``Windowed`` uses it.
        """
        return self._runner.wait(list(message_ids), None if timeout is None else time.monotonic() + timeout)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop messages, begun or not, and their replies. Not part of Flower's interface; ``Windowed`` uses it."""
        self._runner.cancel(list(message_ids))

    def listen(self, listener: Callable[[Message], None]) -> None:
        """Call ``listener`` with each reply when it is there, from any thread. Not part of Flower's interface."""
        self._runner.listener = listener

    def _renew(self, run: Run) -> None:
        self._run = run
        for node_id, config in self._node_configs.items():
            self._contexts[node_id] = Context(run.run_id, node_id, dict(config), RecordDict(), dict(self._run_config))

    def _admit(self, message: Message) -> str:
        """Give a message its id."""
        node_id = message.metadata.dst_node_id
        if node_id not in self._node_configs:
            raise ConfigError(
                f"a message of type {message.metadata.message_type!r} goes to node {node_id}; expected one of this "
                f"grid's {len(self._node_configs)} nodes, as get_node_ids() lists them"
            )
        id_ = str(next(self._numbers))
        message.metadata.__dict__["_message_id"] = id_  # Flower's own grids write it like this
        return id_

    def _groups(self, messages: Sequence[Message]) -> list[Group]:
        """Return what is answered together."""
        push = next(self._numbers)
        groups = together(messages, self._cohort) if self._runner.takes_groups else [[message] for message in messages]
        return [Group(push, -sum(map(self._cost, some)), next(self._numbers), some) for some in groups]


def _close(runner: Runner, identity: Identity) -> None:
    try:
        runner.close()
    finally:
        identity.release()


def _always(cohort: int) -> Callable[[Message], int]:
    check_count("cohort", cohort, 1)
    return lambda message: cohort


def check_count(name: str, value: object, least: int) -> None:
    """Raise if a value is not an integer, or too small."""
    if not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; expected an integer of {least} or more")


def _checked(config: Mapping[str, UserConfigValue], name: str) -> dict[str, UserConfigValue]:
    """Return a copy of a configuration, of whose values Flower knows four types."""
    for key, value in config.items():
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"{name}[{key!r}] is {value!r}; expected a bool, an int, a float or a str")
    return dict(config)
