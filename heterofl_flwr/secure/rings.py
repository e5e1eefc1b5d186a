"""Rings, which are groups of entries that the same number of members hold, and choice of the rings to unmask."""

from functools import lru_cache

import numpy as np

from heterofl_flwr.secure.overlaps import whole
from heterofl_flwr.secure.roster import Part, Roster


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
