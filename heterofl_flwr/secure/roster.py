"""The roster of a round: what all its clients know alike."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.core.axes import Axis, positions
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.secure.crypto import KEY_BYTES, digest
from heterofl_flwr.secure.slices import classes_of, count_holders, reduced, whole, with_counts


@dataclass(frozen=True, kw_only=True)
class Roster:
    """Who takes part in a round, with which slices and keys. All are neighbours: each pair shares a mask.

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
    plans
        The different slices: for each axis of each parameter its length in the global model, and its positions, or
        their number where these are the first ones.
    clients
        Of each client: the number of its slice, its public key for masks and that for shares, in hexadecimal.
    """

    server_round: int
    least: int
    bound: float
    rows: Sequence[str]
    extra_rows: bool
    grid: Sequence[float]
    plans: Sequence[Mapping[str, Sequence[tuple[int, int | Sequence[int]]]]]
    clients: Sequence[Sequence[Any]]

    @classmethod
    def of(cls, plans: Sequence[Plan], keys: Sequence[Sequence[bytes]], **told: Any) -> "Roster":
        """Return the roster of clients with these slices and public keys; ``told`` is all else that it says."""
        written = [{name: [_write(axis) for axis in axes] for name, axes in plan.axes.items()} for plan in plans]
        different = [own for place, own in enumerate(written) if own not in written[:place]]
        named = zip(map(different.index, written), keys, strict=True)
        return cls(plans=different, clients=[(number, *(key.hex() for key in own)) for number, own in named], **told)

    def to_bytes(self) -> bytes:
        """Return the roster as it travels."""
        return json.dumps({own.name: getattr(self, own.name) for own in fields(self)}).encode()

    @classmethod
    def from_bytes(cls, text: object) -> "Roster":
        """Return the roster that a server sent; reject what is none."""
        try:
            own = cls(**json.loads(text))  # type: ignore[arg-type]
            keys = [bytes.fromhex(key) for _, *pair in own.clients for key in pair]
            fits = {len(key) for key in keys} == {KEY_BYTES} and len(set(keys)) == len(keys) and own.least > 1
            fits &= {number for number, *_ in own.clients} <= set(range(len(own.slices)))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ReplyError(f"the server sent a roster that cannot be read: {error}") from error
        if not fits:
            raise ReplyError(
                "the server sent a roster with keys that come twice, rings of one client, or slices it lacks"
            )
        return own

    @cached_property
    def digest(self) -> bytes:
        """What stands for the roster in the purpose of each key."""
        return digest(self.to_bytes())

    @cached_property
    def slices(self) -> Sequence[Plan]:
        """The different slices, with entries for the numbers of clients that count in rows."""
        plans = ({name: tuple(_read(*axis) for axis in own) for name, own in plan.items()} for plan in self.plans)
        return with_counts(list(map(Plan, plans)), self.rows)

    @cached_property
    def small(self) -> Sequence[Plan]:
        """The slices with classes of positions in place of positions, which have the same rings."""
        return reduced(self.slices, {name: classes_of(self.slices, name) for name in whole(self.slices).axes})

    @property
    def threshold(self) -> int:
        """How many shares give a secret: over two thirds, so that two sets of helpers have over a third in common."""
        return 2 * len(self.clients) // 3 + 1

    def public(self, client: int, use: int) -> bytes:
        """Return a client's public key: 1 for masks, 2 for shares."""
        return bytes.fromhex(str(self.clients[client][use]))

    def count(self, own: Plan, clients: Collection[int], slices: Sequence[Plan] = ()) -> NDArray[np.int32]:
        """Return how many of some clients hold each entry of a slice; of a small one, ``slices`` are the small ones."""
        numbers = Counter(self.clients[client][0] for client in set(clients))
        return count_holders(own, slices or self.slices, [numbers[number] for number in range(len(self.slices))])

    def open_rings(self, members: Collection[int], survivors: Collection[int]) -> set[int]:
        """Return the rings that may be unmasked where some clients masked, and some of them are left.

        A ring is the entries that equally many members hold. It may be unmasked if each of them still has the least
        number of holders.
        """
        counts, left = (self.count(whole(self.small), some, self.small) for some in (members, survivors))
        return {ring for ring in self.shared_rings(counts) if left[counts == ring].min() >= self.least}

    def shared_rings(self, counts: NDArray[np.int32]) -> list[int]:
        """Return the rings that enough clients hold, in order, from how many hold each entry."""
        return [int(ring) for ring in np.unique(counts) if ring >= self.least]

    def rings_by_slice(self, members: Collection[int]) -> list[list[int]]:
        """Return for each slice the rings that its clients have seeds for, in order."""
        return [self.shared_rings(self.count(own, members, self.small)) for own in self.small]

    def view(self, members: Collection[int]) -> bytes:
        """Return the digest of the roster and of who is left of it, on which masks and shares of seeds depend."""
        return digest(self.digest, repr(sorted(members)).encode())


def _write(axis: Axis) -> tuple[int, int | list[int]]:
    held = sorted(positions(axis))
    return axis.full, axis.kept if held == list(range(axis.kept)) else held


def _read(full: int, held: int | Sequence[int]) -> Axis:
    return Axis(full, held) if isinstance(held, int) else Axis(full, len(held), 1, tuple(held))
