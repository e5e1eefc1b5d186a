"""``LocalGrid``: Flower's Grid interface inside this machine's processes; it shares its queueing with ``RayGrid``."""

import itertools
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Self, TypedDict, Unpack

from flwr.app import Context, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from heterofl_flwr.compat import SUPERLINK_NODE_ID, Run, set_identity, set_metadata
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.errors import ConfigError, HeteroFLError, check_count
from heterofl_flwr.grids.apps import Identity, load, reference
from heterofl_flwr.grids.processes import start_processes
from heterofl_flwr.grids.runner import Group, Inline, Runner, together
from heterofl_flwr.grids.worker_pool import Pool


class GridKeywords(TypedDict, total=False):
    """The keyword arguments that ``LocalGrid`` and ``RayGrid`` share; ``LocalGrid`` explains them."""

    cohort: int | Callable[[Message], int]
    node_config: Callable[[int], Mapping[str, UserConfigValue]] | None
    run_config: Mapping[str, UserConfigValue] | None
    cost: Callable[[Message], float] | None
    seed: int


class QueuedGrid(Grid):
    """What the grids that run clients themselves have in common: nodes, messages, groups and their order."""

    def __init__(
        self,
        num_nodes: int,
        *,
        cohort: int | Callable[[Message], int] = 1,
        node_config: Callable[[int], Mapping[str, UserConfigValue]] | None = None,
        run_config: Mapping[str, UserConfigValue] | None = None,
        cost: Callable[[Message], float] | None = None,
        seed: int = 0,
    ) -> None:
        check_count("num_nodes", num_nodes, 1)
        if not callable(cohort):
            check_count("cohort", cohort, 1)
        self._cohort = cohort
        self._cost = cost or (lambda message: 0.0)
        self._node_configs = {
            derive(seed, "node", partition): {
                "partition-id": partition,
                "num-partitions": num_nodes,
                **_checked(node_config(partition) if node_config else {}, f"node_config({partition})"),
            }
            for partition in range(num_nodes)
        }
        self._run_config = _checked(run_config or {}, "run_config")
        self._numbers = itertools.count(1)  # of messages, groups and pushes
        self._contexts: dict[int, Context] = {}
        self._renew(Run.create_empty(derive(seed, "run")))

    def _open(self, runner: Runner) -> None:
        """Let clients run; the runner ends with the grid."""
        self._runner = runner
        ending = ExitStack()
        ending.callback(Identity(self._run.run_id).release)
        ending.callback(runner.close)
        self._finalizer = weakref.finalize(self, ending.close)

    def __enter__(self) -> Self:
        """Return the grid."""
        return self

    def __exit__(self, *error: object) -> None:
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
    def deaths(self) -> tuple[str, ...]:
        """A sentence for each worker that died while it answered messages."""
        return tuple(self._runner.deaths)

    def set_run(self, run: Run) -> None:
        """Begin another run: every node starts with an empty state."""
        self._renew(run)
        set_identity(run.run_id, SUPERLINK_NODE_ID)

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
        ids = [self._set_id(message) for message in messages]
        push = next(self._numbers)
        groups = (
            together(messages, self._most_together)
            if self._runner.takes_groups
            else [[message] for message in messages]
        )
        self._runner.submit([Group(push, -sum(map(self._cost, some)), next(self._numbers), some) for some in groups])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that are there; without worker processes, run the clients now."""
        return self._runner.collect(list(message_ids), self._runner.poll_until)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies in the order of the messages.

        After ``timeout`` seconds, clients that were not begun are left out, and so are those still at work in worker
        processes, which are ended. In this process, a client cannot be interrupted.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ids = list(self.push_messages(messages))
        del messages
        try:
            return self._runner.collect(ids, deadline)
        finally:
            self._runner.cancel(ids)

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
        """Let every node begin a run with an empty state."""
        self._run = run
        for node_id, config in self._node_configs.items():
            self._contexts[node_id] = Context(run.run_id, node_id, dict(config), RecordDict(), dict(self._run_config))

    def _most_together(self, message: Message) -> int:
        """Return how many clients may train together with that of a message."""
        most = self._cohort(message) if callable(self._cohort) else self._cohort
        check_count("cohort", most, 1)
        return most

    def _set_id(self, message: Message) -> str:
        """Give a message its id and, for Flower before 1.38, its run and its sender."""
        node_id = message.metadata.dst_node_id
        if node_id not in self._node_configs:
            raise ConfigError(
                f"a message of type {message.metadata.message_type!r} goes to node {node_id}; expected one of this "
                f"grid's {len(self._node_configs)} nodes, as get_node_ids() lists them"
            )
        id_ = str(next(self._numbers))
        set_metadata(message, message_id=id_, run_id=self._run.run_id, src_node_id=SUPERLINK_NODE_ID)
        return id_


class LocalGrid(QueuedGrid):
    """Run any ClientApp on this machine, behind the interface that every Flower strategy uses.

    Replies come in the order in which the messages were sent, however many processes there are. What a client raises,
    or the death of its process, becomes an error reply, as with Flower's other backends, and the grid goes on. Clients
    use one torch thread. Messages do not expire: their ``ttl`` is not looked at.

    Use it as a context manager, or call ``close``. Until then, or until ``set_run`` begins another run, nodes keep what
    clients leave in ``Context.state``.

    Parameters
    ----------
    client_app : ClientApp or str
        The ClientApp, or where to import it: ``"module:attribute"``. For worker processes it has to be importable.
    num_nodes : int
        How many nodes there are. Node ``i`` has ``partition-id`` i; its id depends on ``seed`` and i alone.
    processes : int
        0 or 1 runs clients in this process, one by one, each when its reply is asked for; they share its random state.
        More is the number of worker processes. They last until ``close``, so what a module caches is kept.
    cohort : int or callable
        How many clients may train together, 1 by default, or a function from a message to it, if the ClientApp has an
        attribute ``train_cohort(messages, contexts) -> replies``. It gets the ``train`` messages of one push to
        different nodes at an equal ``rate``, which their config record names, in the order sent and in even groups. Any
        other message goes to the ClientApp itself, and so does each message of a group for which ``train_cohort``
        raises: then only a bad client fails.
    node_config : callable, optional
        From a partition to further entries of its node's ``Context.node_config``.
    run_config : mapping, optional
        ``Context.run_config`` of every node.
    cost : callable, optional
        From a message to how long its client may take, in any unit. Of the messages that were pushed together, worker
        processes begin with the longest; a group takes as long as its members in a row.
    seed : int
        What the ids of the run and of its nodes are drawn from, 0 by default.

    Examples
    --------
    >>> with LocalGrid("my_app.client:app", 100, processes=8) as grid:
    ...     result = FedAvg().start(grid, initial_arrays, num_rounds=3)
    """

    def __init__(
        self, client_app: ClientApp | str, num_nodes: int, *, processes: int = 0, **options: Unpack[GridKeywords]
    ) -> None:
        check_count("processes", processes, 0)
        super().__init__(num_nodes, **options)
        if processes > 1:
            self._open(Pool(*start_processes(reference(client_app), min(processes, num_nodes)), self._contexts))
        else:
            self._open(Inline(load(client_app), self._contexts))


def _checked(config: Mapping[str, UserConfigValue], name: str) -> dict[str, UserConfigValue]:
    """Return a copy of a configuration, of whose values Flower knows four types."""
    for key, value in config.items():
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"{name}[{key!r}] is {value!r}; expected a bool, an int, a float or a str")
    return dict(config)
