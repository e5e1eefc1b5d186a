"""``LocalGrid``: Flower's Grid interface inside this machine's processes, without Ray."""

from collections.abc import Callable, Mapping

from flwr.app import Message, UserConfigValue
from flwr.clientapp import ClientApp

from heterofl_flwr.grids.apps import load, reference
from heterofl_flwr.grids.pool import Pool
from heterofl_flwr.grids.queued import Contexts, QueuedGrid, check_count
from heterofl_flwr.grids.runner import Inline, Runner
from heterofl_flwr.grids.worker import start_processes


class LocalGrid(QueuedGrid):
    """Run any ClientApp on this machine, behind the interface that every Flower strategy uses.

    Replies come in the order in which the messages were sent, however many processes there are. What a client raises,
    or the death of its process, becomes an error reply, as with Flower's other backends, and the grid goes on. Clients
    use one torch thread. Messages do not expire: their ``ttl`` is not looked at.

    Use it as a context manager, or call ``close``.

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
        How many clients may train together, or a function from a message to it, if the ClientApp has an attribute
        ``train_cohort(messages, contexts) -> replies``. It gets the ``train`` messages of one push to different nodes
        at an equal ``rate``, which their config record names, in the order sent and in even groups. Any other message
        goes to the ClientApp itself, and so does each message of a group for which ``train_cohort`` raises: then only
        a bad client fails.
    node_config : callable, optional
        From a partition to further entries of its node's ``Context.node_config``.
    run_config : mapping, optional
        ``Context.run_config`` of every node.
    cost : callable, optional
        From a message to how long its client may take, in any unit. Of the messages that were pushed together, worker
        processes begin with the longest; a group takes as long as its members in a row.
    seed : int
        What the ids of the run and of its nodes are drawn from.

    Examples
    --------
    >>> with LocalGrid("my_app.client:app", 100, processes=8) as grid:
    ...     result = FedAvg().start(grid, initial_arrays, num_rounds=3)
    """

    def __init__(
        self,
        client_app: ClientApp | str,
        num_nodes: int,
        *,
        processes: int = 0,
        cohort: int | Callable[[Message], int] = 1,
        node_config: Callable[[int], Mapping[str, UserConfigValue]] | None = None,
        run_config: Mapping[str, UserConfigValue] | None = None,
        cost: Callable[[Message], float] | None = None,
        seed: int = 0,
    ) -> None:
        check_count("processes", processes, 0)

        def start(contexts: Contexts) -> Runner:
            if processes > 1:
                return Pool(*start_processes(reference(client_app), min(processes, num_nodes)), contexts)
            return Inline(load(client_app), contexts)

        super().__init__(
            start, num_nodes, cohort=cohort, node_config=node_config, run_config=run_config, cost=cost, seed=seed
        )
