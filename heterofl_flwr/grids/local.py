"""``LocalGrid``: Flower's Grid interface in this process, where clients run one by one."""

import threading
import time
from collections.abc import Sequence

from flwr.app import Context
from flwr.clientapp import ClientApp

from heterofl_flwr.grids.apps import answer, load
from heterofl_flwr.grids.queued import Group, QueuedGrid, Runner


class LocalGrid(QueuedGrid):
    """Run any ClientApp in this process, behind the interface that every Flower strategy uses.

    Clients run one by one, each when its reply is asked for, so a debugger can follow them; they share the random state
    of this process, and use one torch thread. What a client raises becomes an error reply, as with Flower's other
    backends, and the grid goes on. Messages do not expire: their ``ttl`` is not looked at. ``RayGrid`` trains the same
    bits in many processes.

    Use it as a context manager, or call ``close``. Until then, or until ``set_run`` begins another run, nodes keep what
    clients leave in ``Context.state``.

    Parameters
    ----------
    client_app : ClientApp or str
        The ClientApp, or where to import it: ``"module:attribute"``.
    num_nodes : int
        How many nodes there are. Node ``i`` has ``partition-id`` i; its id depends on ``seed`` and i alone.
    cohort : int or callable
        How many clients may train together, or a function from a message to it, if the ClientApp has an
        attribute ``train_cohort(messages, contexts) -> replies``. It gets the ``train`` messages of one push to
        different nodes at an equal ``rate``, which their config record names, in the order sent and in even groups. Any
        other message goes to the ClientApp itself, and so does each message of a group for which ``train_cohort``
        raises: then only a bad client fails.
    node_config : callable, optional
        From a partition to further entries of its node's ``Context.node_config``.
    run_config : mapping, optional
        ``Context.run_config`` of every node.
    cost : callable, optional
        From a message to how long its client may take, in any unit. Of the messages that were pushed together, the
        actors of a ``RayGrid`` begin with the longest; a group takes the sum of its members' times.
    seed : int
        What the ids of the run and of its nodes are drawn from.

    Examples
    --------
    >>> with LocalGrid("my_app.client:app", 100) as grid:
    ...     result = FedAvg().start(grid, initial_arrays, num_rounds=3)
    """

    def _open(self, client_app: ClientApp | str) -> None:
        self._run_clients(Inline(load(client_app), self._contexts))


class Inline(Runner):
    """Runs clients in this process, each when its reply is asked for, or that of one in its group."""

    poll_until = None

    def __init__(self, app: ClientApp, contexts: dict[int, Context]) -> None:
        super().__init__(contexts)
        self.takes_groups = hasattr(app, "train_cohort")
        self._app = app
        self._lock = threading.Lock()  # Flower's classic server asks from several threads

    def submit(self, groups: Sequence[Group]) -> None:
        """Accept groups, without running them."""
        self._groups.update({id_: group for group in groups for id_ in group.ids})

    def wait(self, ids: Sequence[str], deadline: float | None) -> list[str]:
        """Run these clients until the deadline, in the order sent; one that has begun is not interrupted."""
        with self._lock:
            groups = {group.number: group for id_ in ids if (group := self._groups.get(id_))}
            for _, group in sorted(groups.items()):
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self._keep(
                    group, answer(self._app, group.messages, [self._contexts[node_id] for node_id in group.nodes])
                )
        return [id_ for id_ in ids if id_ in self._done]
