"""Waiting for clients, which register one by one."""

import logging
import time
from collections.abc import Callable, Sequence

from heterofl_flwr.core.levels import Mix
from heterofl_flwr.federation.limits import RoundError
from heterofl_flwr.federation.round import Federation

QUERY_SECONDS = 120.0
"""How long a new client may take to say what it can hold.

Long, because a busy machine may first have to start its clients; Flower itself answers sooner for one that is gone.
"""

_POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)


def gather(
    there: Callable[[], Sequence[int]],
    learn: Callable[[Sequence[int]], bool],
    federation: Federation,
    *,
    minimum: int,
    wait: float,
) -> Sequence[int]:
    """Return the clients that are there, as soon as there are enough.

    ``learn`` registers those that are new and says whether any were. As long as new ones say that there are more than
    these, and more come, this waits too: otherwise a first round could begin with any part of a simulation's clients.
    """
    deadline = time.monotonic() + wait
    while True:
        node_ids = there()
        enough = len(node_ids) >= max(minimum, 1)
        if enough and not (learn(node_ids) and federation.nodes.most_said() > len(node_ids)):
            return node_ids
        if time.monotonic() >= deadline:
            break
        time.sleep(min(_POLL_SECONDS, wait))
    if enough:
        return node_ids
    raise RoundError(
        f"{len(node_ids)} nodes are there after {wait:g} s, expected at least {max(minimum, 1)}: start more SuperNodes "
        f"(flower-supernode), simulate more (flwr run . --federation-config 'num-supernodes=20'), or ask for fewer "
        f"(min_available_nodes)"
    )


def warn_of_few(clients: int, mix: Mix) -> bool:
    """Say how to simulate more clients, where there are fewer than the mix has parts; return whether there are."""
    parts = sum(mix.counts)
    if clients < parts:
        logger.warning(
            "%d clients share the %d parts of the mix %s; for 20 virtual clients: flwr run . --federation-config "
            "'num-supernodes=20 client-resources-num-cpus=1'",
            clients,
            parts,
            mix,
        )
    return clients < parts
