"""Limits that the server sets for clients: on their replies, their levels and their partitions."""

import logging
import math
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, Strict
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Natural, NotNegative, check, group
from heterofl_flwr.core.levels import level_name, rate_of
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.federation.capability import Capability

logger = logging.getLogger(__name__)

REMOTE_CHANGE = 10
"""Default bound on the L2 norm of a remote client's change, as a multiple of ``max(1, L2 norm of the model)``."""


def _read_named(value: object) -> dict[str, Any]:
    """Convert a mapping, or text such as ``phone=c,camera=a``, to a dict by node name."""
    if isinstance(value, str):
        pairs = [pair.split("=", 1) for pair in value.split(",")] if value.strip() else []
        named = {name.strip(): level.strip() for name, level in pairs}  # a part without "=" raises ValueError
        if len(named) < len(pairs) or "" in named:
            raise ValueError
        value = named
    if not isinstance(value, Mapping):
        raise ValueError
    return {str(name): level for name, level in value.items()}  # Flower's node ids are numbers


def _read_levels(value: object) -> dict[str, str | float]:
    named = _read_named(value)
    for level in named.values():
        rate_of(level)
    return named


def _read_partitions(value: object) -> dict[str, int]:
    numbers = {name: int(str(number)) for name, number in _read_named(value).items()}
    if len(set(numbers.values())) < len(numbers):
        raise ValueError
    return numbers


_AsText = PlainSerializer(lambda named: ",".join(f"{name}={value}" for name, value in named.items()), return_type=str)


@group
class Limits:
    """Bounds on the replies of clients, and the server's tables of levels and partitions by node."""

    norm_bound: NotNegative = 0.0
    """upper bound on the L2 norm of the change in a reply; a reply above it is rejected, not clipped. 0: no bound in
    simulations, and ten times the norm of the model for replies through a SuperLink
    """
    examples: Annotated[int, Strict(), Field(ge=1, le=1_000_000_000, alias="max-examples")] = 10_000_000
    """upper bound on the number of examples that a reply reports; a reply above it is rejected. With weights=examples,
    set it to a little more than the largest client has
    """
    levels: Annotated[
        Mapping[str, str | float],
        BeforeValidator(_read_levels),
        _AsText,
        "different names with a level each, such as 'phone=c,camera=a', or '' for none",
    ] = field(default_factory=dict, hash=False)
    """levels of nodes, by registered name or node id. If a node reports another level, the smaller level counts"""
    largest_level: Annotated[
        str | Annotated[float, Strict()], check(rate_of), "a level such as 'c' or a rate such as '0.3'"
    ] = "a"
    """upper bound on the levels of all nodes that are not in levels"""
    partitions: Annotated[
        Mapping[str, Natural],
        BeforeValidator(_read_partitions),
        _AsText,
        "different names with a number each, such as 'phone=0,camera=1', or '' for none",
    ] = field(default_factory=dict, hash=False)
    """partitions of nodes, by registered name or node id; other nodes never get these partitions"""

    def check_levels(self, mix: Mix, assignment: str) -> None:
        """Raise ``ConfigError`` if a level in the table ``levels`` is above the rate of the global model.

        Under *Dynamic*, also raise it if a level in the table, or ``largest_level``, is below the smallest rate of the
        mix.
        """
        wide = [who for who, level in self.levels.items() if rate_of(level) > mix.global_rate]
        faults = [f"{', '.join(wide)} above the mix's largest level, {level_name(mix.global_rate)}"] if wide else []
        if assignment == "dynamic":
            everyone = (*self.levels.items(), ("largest_level", self.largest_level))
            if narrow := [who for who, level in everyone if rate_of(level) < mix.rates[-1]]:
                faults.append(f"{', '.join(narrow)} below the mix's smallest level, {level_name(mix.rates[-1])}")
        if faults:
            raise ConfigError(f"levels: {' and '.join(faults)}: expected levels within {mix}, or another mix")

    def default_norm_bound(self, state: Mapping[str, Tensor], *, remote: bool) -> float:
        """Return the default bound on the L2 norm of a client's change; 0 if there is no default bound.

        Only ``remote`` clients have a default bound, and only if ``norm_bound`` is 0. The bound is ``REMOTE_CHANGE``
        times the L2 norm of ``state``, or times 1 if this norm is below 1.
        """
        if self.norm_bound or not remote:
            return 0.0
        return REMOTE_CHANGE * max(1.0, math.hypot(*(tensor.norm().item() for tensor in state.values())))

    def applied(self, reported: Capability, name: str, node_id: str) -> Capability:
        """Return a copy of ``reported``, adjusted to the server's tables ``levels`` and ``partitions``.

        The rate limit is the client's level in ``levels``, or else ``largest_level``. If a client in ``levels`` reports
        no capacity, the capacity is this level too. The partition is the client's entry in ``partitions``. A client
        without an entry keeps the partition that it reports. If this partition is another client's entry, the partition
        becomes None.
        """
        key = name if name in self.levels else node_id
        limit = rate_of(self.levels.get(key, self.largest_level))
        partition = self.partitions.get(name, self.partitions.get(node_id, reported.partition))
        if not {name, node_id} & self.partitions.keys() and partition in self.partitions.values():
            logger.warning("node %s says partition %s, which is another node's", name or node_id, partition)
            partition = None
        capacity = limit if reported.capacity is None and key in self.levels else reported.capacity
        changed = replace(reported, capacity=capacity, limit=limit, partition=partition)
        if reported.capacity not in (None, changed.holds):
            logger.warning(
                "node %s gets rate %g by the server's levels, in place of %g",
                name or node_id,
                changed.holds,
                reported.capacity,
            )
        return changed
