"""Masks of a client's change: private masks, and masks shared by two clients, which cancel in the sum."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heterofl_flwr.secure import crypto
from heterofl_flwr.secure.overlaps import add_part, overlap
from heterofl_flwr.secure.roster import Part, Roster

Place = NDArray[np.bool_] | NDArray[np.int64]
"""Entries of a vector, as a boolean array or as indices."""


def add_pairs(vector: crypto.Words, roster: Roster, view: bytes, client: int, private: bytes, peers: set[int]) -> None:
    """Add to ``vector`` the masks that ``client`` shares with each peer, on the overlap of the two clients' slices.

    In a pair, the client with the smaller number adds the mask, and the other subtracts it.
    """
    plan = roster.slice_of(client)
    for number, neighbours in roster.by_slice(peers).items():
        shared = overlap(plan, roster.slices[number])
        total = np.zeros(shared.parameters, np.uint32)
        for peer in neighbours:
            pair = min(client, peer), max(client, peer)
            key = crypto.agree(private, roster.public(peer, 1), view, "mask", *pair)
            crypto.add_stream(total, key, 1 if client < peer else -1)
        add_part(vector, plan, shared, total)


def places_of(parts: NDArray[np.int32], roster: Roster) -> dict[Part, Place]:
    """Return, for each part of the sum, the entries of a slice that belong to the part.

    ``parts`` has the part of each entry of the slice, or 0 if the entry belongs to no part.
    """
    # Classifier rows have many small parts: sorting finds their entries in one pass.
    rows = np.flatnonzero(parts % (roster.row_groups + 1)) if roster.row_groups else np.zeros(0, np.int64)
    ordered = rows[np.argsort(parts[rows], kind="stable")]
    numbers, starts = np.unique(parts[ordered], return_index=True)
    places: dict[Part, Place] = dict(zip(map(int, numbers), np.split(ordered, starts[1:]), strict=False))
    for part in np.unique(parts):
        if part and not roster.is_rows(int(part)):
            places[int(part)] = parts == part
    return dict(sorted(places.items()))


def add_private(vector: crypto.Words, place: Place, seeds: Sequence[bytes], sign: int = 1) -> None:
    """Add the key streams of ``seeds`` to ``vector[place]``; subtract them if ``sign`` is -1."""
    total = np.zeros(np.count_nonzero(place) if place.dtype == np.bool_ else len(place), np.uint32)
    for seed in seeds:
        crypto.add_stream(total, seed, sign)
    vector[place] += total
