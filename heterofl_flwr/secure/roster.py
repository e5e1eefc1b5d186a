"""The roster of a round: its clients, and the rings and parts of the sum, which are unmasked separately."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.core.axes import Axis, positions
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.secure.crypto import KEY_BYTES, digest
from heterofl_flwr.secure.overlaps import as_state, classes_of, count_holders, reduced, whole, with_counts

ROW_GROUPS = 64
"""Upper bound on the number of groups of classifier rows. Each group has its own seeds. If there are more rows,
several rows share a group.
"""

Part = int
"""Number that identifies a part of the sum. The entries that are held by the same number of members form a ring. A part
is one group of classifier rows in a ring, or all other entries of a ring. Each client has a seed for each part of its
slice.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Roster:
    """The clients of a round, with their slices and keys.

    Attributes
    ----------
    run, server_round
        The run's random id, and the round's number from 1.
    least
        Minimum number of clients in a sum that is unmasked.
    bound
        Upper bound on one client's change of an entry.
    by_label
        Whether classifier rows are averaged by label; if False, all rows of all clients count.
    rows
        Names of the parameters with one row for each class; empty if ``by_label`` is False.
    extra_rows
        Whether rows that belong to no class are averaged over all clients that hold them.
    grid
        With noise, the clipping norm and the step size of the fixed-point changes; without noise, empty.
    plans
        The distinct slices. A slice has a pair for each axis of each parameter: the axis's length, and the positions
        that the slice holds. The first n positions are stored as the number n.
    clients
        For each client, the index of its slice, its public key for masks and its public key for shares.
    """

    run: int
    server_round: int
    least: int
    bound: float
    by_label: bool = True
    rows: Sequence[str]
    extra_rows: bool
    grid: Sequence[float]
    plans: Sequence[Mapping[str, Sequence[tuple[int, int | Sequence[int]]]]]
    clients: Sequence[Sequence[Any]]

    @classmethod
    def of(cls, plans: Sequence[Plan], keys: Sequence[Sequence[bytes]], **values: Any) -> "Roster":
        """Return the roster of clients with these slices and pairs of public keys.

        ``values`` are the other attributes of the roster.
        """
        written = [{name: [_write(axis) for axis in axes] for name, axes in plan.axes.items()} for plan in plans]
        distinct = [plan for place, plan in enumerate(written) if plan not in written[:place]]
        pairs = zip(map(distinct.index, written), keys, strict=True)
        return cls(plans=distinct, clients=[(number, *(key.hex() for key in pair)) for number, pair in pairs], **values)

    def to_bytes(self) -> bytes:
        """Return the roster as JSON."""
        return json.dumps({attribute.name: getattr(self, attribute.name) for attribute in fields(self)}).encode()

    @staticmethod
    @lru_cache(maxsize=1)
    def from_bytes(text: object) -> "Roster":
        """Parse a roster; raise ``ReplyError`` if it is invalid. The last result is cached."""
        try:
            roster = Roster(**json.loads(text))  # type: ignore[arg-type]  # the server may have sent no text
            keys = [bytes.fromhex(key) for _, *pair in roster.clients for key in pair]
            fits = {len(key) for key in keys} == {KEY_BYTES} and len(set(keys)) == len(keys) and roster.least > 1
            fits &= {number for number, *_ in roster.clients} <= set(range(len(roster.slices)))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ReplyError(f"the server sent a roster that cannot be read: {error}") from error
        if not fits:
            raise ReplyError("the server sent a roster with equal keys, sums of a single client, or unknown slices")
        return roster

    @cached_property
    def digest(self) -> bytes:
        """Hash of the roster. It enters the derivation of all keys that two clients share."""
        return digest(self.to_bytes())

    @cached_property
    def slices(self) -> Sequence[Plan]:
        """The distinct slices, extended by entries for row counts: how many clients trained each classifier row."""
        plans = ({name: tuple(_read(*axis) for axis in axes) for name, axes in plan.items()} for plan in self.plans)
        return with_counts(list(map(Plan, plans)), self.rows)

    @cached_property
    def small(self) -> Sequence[Plan]:
        """The slices, reduced for fast counting: one position for each class of positions (see ``classes_of``)."""
        names = whole(self.slices).axes
        return reduced(self.slices, {name: classes_of(self.slices, name, rows=name in self.rows) for name in names})

    @cached_property
    def num_rows(self) -> int:
        """Maximum number of rows of the parameters in ``rows``; 0 if there are none."""
        lengths = (axes[0].size for plan in self.slices for name, axes in plan.axes.items() if name in self.rows)
        return max(lengths, default=0)

    @property
    def row_groups(self) -> int:
        """Number of groups of classifier rows. Each group is unmasked separately."""
        return min(self.num_rows, ROW_GROUPS)

    def group_of(self, row: int) -> int:
        """Return the group of a classifier row, counted from 1."""
        return row * self.row_groups // self.num_rows + 1

    @property
    def threshold(self) -> int:
        """Number of shares needed to reconstruct a secret: just above two thirds of the clients.

        So any two sets of this size have more than a third of the clients in common.
        """
        return 2 * len(self.clients) // 3 + 1

    @property
    def tolerated(self) -> int:
        """Number of lying clients that the protocol tolerates, at least 1."""
        return max(1, len(self.clients) - self.threshold)

    def slice_of(self, client: int) -> Plan:
        """Return a client's slice."""
        number: int = self.clients[client][0]
        return self.slices[number]

    def by_slice(self, clients: Iterable[int]) -> dict[int, list[int]]:
        """Return the clients by the index of their slice."""
        groups = defaultdict[int, list[int]](list)
        for client in clients:
            groups[self.clients[client][0]].append(client)
        return groups

    def public(self, client: int, use: int) -> bytes:
        """Return a client's public key for masks (``use`` 1) or for shares (``use`` 2)."""
        return bytes.fromhex(str(self.clients[client][use]))

    def count(self, plan: Plan, clients: Collection[int], slices: Sequence[Plan] = ()) -> NDArray[np.int32]:
        """Return, for each entry of the slice ``plan``, how many of ``clients`` hold the entry.

        ``slices`` are the distinct slices, by default ``self.slices``. If ``plan`` is from ``small``, pass
        ``slices=self.small``.
        """
        numbers = Counter(self.clients[client][0] for client in set(clients))
        return count_holders(plan, slices or self.slices, [numbers[number] for number in range(len(self.slices))])

    def parts(self, plan: Plan, holders: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return, for each entry, the number of its part (see ``Part``); 0 if too few clients hold the entry.

        ``holders`` has one number for each entry of ``plan``: how many clients hold this entry.
        """
        parts = np.where(holders >= self.least, holders * (self.row_groups + 1), 0).astype(np.int32)
        for name, tensor in as_state(parts, plan).items():
            if name not in self.rows:
                continue
            groups = torch.tensor([self.group_of(row) for row in sorted(positions(plan.axes[name][0]))])
            tensor += (tensor > 0) * groups.to(torch.int32).view(-1, *[1] * (tensor.dim() - 1))
        return parts

    def ring_of(self, part: Part) -> int:
        """Return the number of members that hold an entry of ``part``; all entries of a part have the same number."""
        return part // (self.row_groups + 1)

    def is_rows(self, part: Part) -> bool:
        """Whether a part of the sum consists of classifier rows."""
        return part % (self.row_groups + 1) > 0

    def view(self, members: Collection[int]) -> bytes:
        """Return a hash of the roster and of ``members``. Mask keys are derived from this hash."""
        return digest(self.digest, repr(sorted(members)).encode())


# All clients of a process have the same roster, so the result is computed once for all of them.
@lru_cache(maxsize=2)
def open_rings(roster: Roster, members: tuple[int, ...], survivors: tuple[int, ...]) -> frozenset[int]:
    """Return the rings that may be unmasked: at least ``roster.least`` survivors hold each entry of the ring.

    A ring consists of all entries that are held by the same number of members. This number identifies the ring.
    """
    rings, remaining = (roster.count(whole(roster.small), clients, roster.small) for clients in (members, survivors))
    return frozenset(int(ring) for ring in np.unique(rings) if remaining[rings == ring].min() >= roster.least)


@lru_cache(maxsize=2)
def parts_by_slice(roster: Roster, members: tuple[int, ...]) -> list[list[Part]]:
    """Return, for each slice of the round, the sorted numbers of the parts to which its entries belong.

    ``members`` are the clients in the sum. Part 0 is left out: it stands for entries that too few clients hold.
    """
    small = roster.small
    parts_by_ring = (np.unique(roster.parts(plan, roster.count(plan, members, small))) for plan in small)
    return [[int(part) for part in parts if part] for parts in parts_by_ring]


def _write(axis: Axis) -> tuple[int, int | list[int]]:
    members = sorted(positions(axis))
    return axis.size, axis.local_size if members == list(range(axis.local_size)) else members


def _read(size: int, members: int | Sequence[int]) -> Axis:
    return Axis(size, members) if isinstance(members, int) else Axis(size, len(members), 1, tuple(members))
