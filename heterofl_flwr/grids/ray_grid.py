"""``RayGrid``: Flower's Grid interface over Ray actors, on this machine or on a cluster."""

import atexit
import math
from collections.abc import Callable, Mapping

from flwr.app import Message, UserConfigValue
from flwr.clientapp import ClientApp

from heterofl_flwr.common.errors import ConfigError, check_count, extra
from heterofl_flwr.grids.queued import QueuedGrid


class RayGrid(QueuedGrid):
    """Run any ClientApp in Ray actors, behind the interface that every Flower strategy uses.

    Clients train the bits that they train on a ``LocalGrid``, and replies come in the order in which the messages were
    sent, with any number of actors. Actors last until ``close``, so what a module caches is kept. They get
    fractions of GPUs, may be on other machines, and are replaced: what an actor had that died (killed, out of memory,
    gone with its machine) is given to another, at most twice, before the reply is an error. ``deaths`` names them.

    Ray is joined where this process uses it already, or where the environment variable ``RAY_ADDRESS`` names a cluster,
    whose machines need the same packages and paths. Else it is started here, and ended by ``close``.

    Use it as a context manager, or call ``close``.

    Parameters
    ----------
    client_app : ClientApp or str
        The ClientApp, or where actors import it: ``"module:attribute"``. Of an app that is given, what a module holds
        is imported there too, and what this script or notebook holds is sent.
    num_nodes : int
        How many nodes there are. Node ``i`` has ``partition-id`` i; its id depends on ``seed`` and i alone.
    num_cpus : float
        Processor cores that Ray reserves for each actor. A client always uses one thread.
    num_gpus : float
        Share of a GPU for each actor, or a number of whole ones; 0 hides them from it.
    at_once : int, optional
        The most actors; None for as many as the machines have room for.
    cohort, node_config, run_config, cost, seed
        As for ``LocalGrid``.

    Examples
    --------
    >>> with RayGrid("my_app.client:app", 100, num_gpus=0.1) as grid:
    ...     result = FedAvg().start(grid, initial_arrays, num_rounds=3)
    """

    def __init__(
        self,
        client_app: ClientApp | str,
        num_nodes: int,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0.0,
        at_once: int | None = None,
        cohort: int | Callable[[Message], int] = 1,
        node_config: Callable[[int], Mapping[str, UserConfigValue]] | None = None,
        run_config: Mapping[str, UserConfigValue] | None = None,
        cost: Callable[[Message], float] | None = None,
        seed: int = 0,
    ) -> None:
        if at_once is not None:
            check_count("at_once", at_once, 1)
        for name, share in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
                raise ConfigError(f"{name} is {share!r}; expected a number of 0 or more")
        if num_gpus > 1 and num_gpus % 1:
            raise ConfigError(f"num_gpus is {num_gpus!r}; expected a share of one GPU, or a number of whole ones")
        self._num_cpus, self._num_gpus, self._most = num_cpus, num_gpus, min(at_once or num_nodes, num_nodes)
        super().__init__(
            client_app, num_nodes, cohort=cohort, node_config=node_config, run_config=run_config, cost=cost, seed=seed
        )

    def _open(self, client_app: ClientApp | str) -> None:
        with extra("simulation", "use LocalGrid, which is --grid local"):  # here, as Ray loads slowly
            from heterofl_flwr.grids.ray_actor_pool import ActorPool
            from heterofl_flwr.grids.ray_actors import ActorOptions
            from heterofl_flwr.grids.ray_session import Session
        options = ActorOptions(client_app, self._num_cpus, self._num_gpus, Session.enter())
        try:
            number = min(self._most, options.room())
            if number == 0:
                raise ConfigError(f"no machine has room for an actor: {options.lack()}")
            self._run_clients(ActorPool(options, number, self._contexts), Session.leave)
        except BaseException:
            Session.leave()
            raise
        atexit.register(self._finalizer)  # before Ray ends itself; unlike a method, it does not hold the grid

    def close(self) -> None:
        """End the actors, busy or not, and Ray if this grid has started it. More calls do nothing."""
        super().close()
        atexit.unregister(self._finalizer)
