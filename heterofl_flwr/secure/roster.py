"""The roster of a round: what all its clients know alike, who shares secrets with whom, and with how many."""

import json
import math
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise

import numpy as np

from heterofl_flwr.core.axes import Axes
from heterofl_flwr.errors import ReplyError
from heterofl_flwr.secure.keys import KEY_BYTES, digest
from heterofl_flwr.secure.slices import Slice, reduced, size, slice_of, with_counts

COMPLETE = 20
"""Below so many clients in a ring, each is a neighbour of each other."""

_LOST = 1 / 3
"""The share of a ring's holders that may be lost or side with the server."""

_FAILS = 2.0**-20
"""How likely a ring then has one cut of the two that would divide it."""


@dataclass(frozen=True, kw_only=True)
class Roster:
    """Who takes part in a round, with which slices and keys; equal texts have equal digests.

    Attributes
    ----------
    server_round
        The round, from 1.
    least
        A ring that fewer clients hold is not unmasked.
    bound
        By how much a client may change an entry.
    rows, extra_rows
        The parameters whose rows belong to classes; whether rows beyond the classes count for all.
    grid
        Where noise is added: to which L2 norm a change is shortened, and the step of the noise; else nothing.
    axes
        The different axes of all slices: their positions, or a number where these are the first.
    plans
        The different slices: the number of each axis of each parameter.
    clients
        Of each client: the number of its slice, its public key for masks and that for shares, in hexadecimal.
    """

    server_round: int
    least: int
    bound: float
    rows: Sequence[str]
    extra_rows: bool
    grid: Sequence[float]
    axes: Sequence[int | Sequence[int]]
    plans: Sequence[Mapping[str, Sequence[int]]]
    clients: Sequence[tuple[int, str, str]]

    def to_bytes(self) -> bytes:
        """Return the roster as it travels."""
        return json.dumps({own.name: getattr(self, own.name) for own in fields(self)}).encode()

    @classmethod
    def from_bytes(cls, text: object) -> "Roster":
        """Return the roster that a server sent; reject what is none."""
        try:
            own = cls(**json.loads(text))  # type: ignore[arg-type]
            keys = [bytes.fromhex(key) for _, *pair in own.clients for key in pair]
            fits = all(len(key) == KEY_BYTES for key in keys) and len(set(keys)) == len(keys) and own.least > 1
            fits = fits and all(len(own.slices[number]) for number, *_ in own.clients)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ReplyError(f"the server sent a roster that cannot be read: {error}") from error
        if not fits:
            raise ReplyError("the server sent a roster with keys that come twice, or rings of a single client")
        return own

    @cached_property
    def digest(self) -> bytes:
        """What stands for the roster in the purpose of each key."""
        return digest(self.to_bytes())

    @cached_property
    def slices(self) -> Sequence[Slice]:
        """The different slices, with entries for the numbers of clients that count in rows."""
        axes = [np.arange(own) if isinstance(own, int) else np.array(own, np.int64) for own in self.axes]
        return with_counts(
            [{name: [axes[n] for n in own] for name, own in plan.items()} for plan in self.plans], self.rows
        )

    @cached_property
    def small(self) -> Sequence[Slice]:
        """The slices with classes of positions in place of positions, which have the same rings."""
        return reduced(self.slices, list(dict.fromkeys(name for own in self.slices for name in own)))

    def public(self, client: int, use: int) -> bytes:
        """Return a client's public key: 1 for masks, 2 for shares."""
        return bytes.fromhex(str(self.clients[client][use]))

    def by_slice(self, clients: Collection[int]) -> list[int]:
        """Return how many of some clients have each slice."""
        numbers = Counter(self.clients[client][0] for client in set(clients))
        return [numbers[number] for number in range(len(self.plans))]

    @cached_property
    def neighbours(self) -> Sequence[frozenset[int]]:
        """For each client those with whom it shares masks and secrets, itself included."""
        everybody = frozenset(range(len(self.clients)))
        if len(everybody) < COMPLETE or not self._order:
            return [everybody] * len(everybody)
        found: list[set[int]] = [{client} for client in everybody]
        for ring in self._rings(everybody):
            for client, others in _ring_graph(sorted(ring), self.digest).items():
                found[client] |= others
        return [frozenset(own) for own in found]

    def threshold(self, client: int) -> int:
        """Return how many shares give a secret of a client: over two thirds, so that two sets of helpers overlap."""
        return 2 * len(self.neighbours[client]) // 3 + 1

    def divided(self, clients: Collection[int], members: Collection[int]) -> set[int]:
        """Return the rings of members in which those who are left do not hang together, by their number of holders."""
        left = set(clients)
        return {len(ring) for ring in self._rings(members) if not _is_connected(ring & left, self.neighbours)}

    @cached_property
    def _order(self) -> Sequence[int]:
        """The slices from the largest on, if each lies in the one before; else none."""
        order = sorted(range(len(self.plans)), key=lambda number: -size(self.slices[number]))
        inside = all(_contains(self.slices[one], self.slices[next_]) for one, next_ in pairwise(order))
        return order if inside else ()

    def _rings(self, clients: Collection[int]) -> list[frozenset[int]]:
        """Return who holds each ring, of some clients; where slices do not lie in one another, all of them together."""
        if not self._order:
            return [frozenset(clients)]
        rank = {client: self._order.index(self.clients[client][0]) for client in clients}
        return [frozenset(one for one in clients if rank[one] <= last) for last in sorted(set(rank.values()))]


def _contains(large: Slice, small: Slice) -> bool:
    return all(
        name in large and all(np.isin(*pair).all() for pair in zip(axes, large[name], strict=True))
        for name, axes in small.items()
    )


def _ring_graph(ring: Sequence[int], seed: bytes) -> dict[int, set[int]]:
    """Return the neighbours of each client in a ring: those beside it on a circle in random order (Bell et al., 2020).

    Two runs of lost clients, as long as half of the neighbours, would divide the circle.
    """
    number = len(ring)
    half = math.ceil(math.log(_FAILS / number, _LOST))
    order = list(ring)
    random.Random(seed + number.to_bytes(4, "big")).shuffle(order)
    far = number // 2 if number < COMPLETE else min(half, number // 2)
    return {
        client: {order[(place + step) % number] for step in range(-far, far + 1)} for place, client in enumerate(order)
    }


def _is_connected(clients: Collection[int], neighbours: Sequence[Collection[int]]) -> bool:
    """Whether paths over neighbours lead from each of some clients to each other."""
    rest = set(clients)
    reached = {rest.pop()} if rest else set()
    while reached:
        reached = {other for one in reached for other in neighbours[one]} & rest
        rest -= reached
    return not rest


def compact(
    plans: Mapping[int, Mapping[str, Axes]],
) -> tuple[list[int | list[int]], list[dict[str, list[int]]], dict[int, int]]:
    """Return the different axes and slices of some plans as a roster has them, and the slice's number of each key."""
    axes: dict[tuple[int, ...], int] = {}
    slices: list[dict[str, list[int]]] = []
    numbers: dict[int, int] = {}
    known: dict[int, int] = {}
    for key, plan in plans.items():
        if id(plan) not in known:
            own = {
                name: [axes.setdefault(tuple(axis.tolist()), len(axes)) for axis in held]
                for name, held in slice_of(plan).items()
            }
            if own not in slices:
                slices.append(own)
            known[id(plan)] = slices.index(own)
        numbers[key] = known[id(plan)]
    written = [len(own) if own == tuple(range(len(own))) else list(own) for own in axes]
    return written, slices, numbers
