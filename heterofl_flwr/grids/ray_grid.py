"""``RayGrid``: a grid that runs clients in Ray actors."""

import atexit
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from flwr.app import Message, UserConfigValue
from flwr.clientapp import ClientApp

from heterofl_flwr.common.errors import ConfigError, check_count, extra
from heterofl_flwr.grids.queued import QueuedGrid


class RayGrid(QueuedGrid):
    """Run any ClientApp in Ray actors, for any Flower strategy.

    On CPUs, results equal those of a ``LocalGrid`` bit for bit, with any number of actors, if clients seed their random
    numbers. Actors run until ``close``, so caches in modules persist between messages. If an actor dies, it is
    replaced, and another actor gets its messages. A message gets an error reply if three actors that ran it have
    died.

    The grid uses the Ray cluster that this process is connected to, or else the cluster at the address in the
    environment variable ``RAY_ADDRESS``. All machines of a cluster need the same packages and paths. Without a cluster,
    the first grid starts Ray on this machine, and Ray ends when the last grid is closed.

    Use it as a context manager, or call ``close``.

    Parameters
    ----------
    client_app : ClientApp or str
        The ClientApp, or its import path ``"module:attribute"``. A ClientApp object is pickled.
    num_nodes : int
        Number of nodes. Node ``i`` has ``partition-id`` i.
    num_cpus : float
        Processor cores that Ray reserves for each actor. A client always uses one thread.
    num_gpus : float
        Fraction of a GPU for each actor, or a number of whole GPUs; with 0 an actor sees no GPU.
    at_once : int, optional
        Maximum number of actors, by default ``num_nodes``. Fewer start if the machines have too few cores or GPUs.
    cohort, by_rate, node_config, run_config, cost, seed
        See ``LocalGrid``. With GPUs, if n messages are pushed together, the number of messages in a group is at most n
        divided by the number of actors, rounded up.

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
        by_rate: bool = True,
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
            client_app,
            num_nodes,
            cohort=cohort,
            by_rate=by_rate,
            node_config=node_config,
            run_config=run_config,
            cost=cost,
            seed=seed,
        )

    def _open(self, client_app: ClientApp | str) -> None:
        with extra("simulation", "use LocalGrid, which is --grid local"):  # not at the top, because Ray loads slowly
            from heterofl_flwr.grids.ray_actors import ActorOptions
            from heterofl_flwr.grids.ray_dispatch import ActorPool
            from heterofl_flwr.grids.ray_session import Session
        options = ActorOptions(client_app, self._num_cpus, self._num_gpus, Session.enter())
        with ExitStack() as opened:
            opened.callback(Session.leave)
            number = min(self._most, options.room())
            if number == 0:
                raise ConfigError(f"no machine has room for an actor: {options.lack()}")
            pool = ActorPool(options, number, self._contexts)
            opened.callback(pool.close)
            self._run_clients(pool, opened.pop_all().close)
        atexit.register(self._finalizer)  # runs before Ray's own function; a bound method would keep the grid alive

    def close(self) -> None:
        """End the actors. The last open grid also ends what a grid has started: Ray, or the connection to a cluster."""
        super().close()
        atexit.unregister(self._finalizer)
