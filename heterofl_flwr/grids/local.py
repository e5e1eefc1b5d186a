"""``LocalGrid``: a grid that runs clients in this process, one by one."""

import math
import threading
import time
from collections.abc import Sequence

from flwr.app import Context
from flwr.clientapp import ClientApp

from heterofl_flwr.grids.call_app import answer, load
from heterofl_flwr.grids.queued import Group, QueuedGrid, Runner


class LocalGrid(QueuedGrid):
    """Run any ClientApp in this process, for any Flower strategy.

    Clients run one by one, each when its reply is pulled, so a debugger can follow them. They share this process's
    random state and use one torch thread. An error of a client becomes an error reply. ``ttl`` is ignored.
    On CPUs, ``RayGrid`` gives the same results, bit for bit, in many processes, if clients seed their random numbers.

    Use the grid as a context manager, or call ``close``. Each node keeps its ``Context.state`` until ``close`` or
    ``set_run``, which begins another run.

    Parameters
    ----------
    client_app : ClientApp or str
        The ClientApp, or its import path ``"module:attribute"``.
    num_nodes : int
        Number of nodes. Node ``i`` has ``partition-id`` i; its id depends only on ``seed`` and i.
    cohort : int or callable
        Maximum number of clients that train together, or a function from a message to this number. To train clients
        together, the ClientApp needs an attribute ``train_cohort(messages, contexts) -> replies``. This attribute
        is called with groups of ``train`` messages that were pushed together, go to different nodes and have a
        ``rate`` in their config record. The ClientApp itself gets all other messages, one by one. If
        ``train_cohort`` raises an error, the ClientApp gets the messages of that group too.
    by_rate : bool
        Whether all messages of a group must have the same ``rate``.
    node_config : callable, optional
        Function from a partition to additional entries of its node's ``Context.node_config``.
    run_config : mapping, optional
        ``Context.run_config`` of every node.
    cost : callable, optional
        Function from a message to the expected time that its client needs, in any unit. A ``RayGrid`` runs the
        clients with the longest time first.
    seed : int
        Random seed for the ids of the run and of its nodes.

    Examples
    --------
    >>> with LocalGrid("my_app.client:app", 100) as grid:
    ...     result = FedAvg().start(grid, initial_arrays, num_rounds=3)
    """

    def _open(self, client_app: ClientApp | str) -> None:
        runner = Inline(load(client_app), self._contexts)
        self._run_clients(runner, runner.close)


class Inline(Runner):
    """Runner of clients in this process."""

    # Clients run only in ``wait``, when a reply to a message of their group is pulled.

    poll_until = math.inf

    def __init__(self, app: ClientApp, contexts: dict[int, Context]) -> None:
        super().__init__(contexts)
        self.takes_groups = hasattr(app, "train_cohort")
        self._app = app
        self._lock = threading.Lock()  # Flower's classic server calls from several threads

    def submit(self, groups: Sequence[Group]) -> None:
        """Queue groups without running them."""
        self._groups.update({id_: group for group in groups for id_ in group.ids})

    def wait(self, ids: Sequence[str], deadline: float) -> list[str]:
        """Run these messages' clients, but start no client after ``deadline``; return the ids of answered messages."""
        with self._lock:
            groups = {group.number: group for id_ in ids if (group := self._groups.get(id_))}
            for _, group in sorted(groups.items()):
                if time.monotonic() >= deadline:
                    break
                self._keep(
                    group, answer(self._app, group.messages, [self._contexts[node_id] for node_id in group.nodes])
                )
        return [id_ for id_ in ids if id_ in self._done]
