"""The server's side of a round of secure aggregation: add up masked vectors, and take the masks off the sum."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from heterofl_flwr.errors import ReplyError, RoundError
from heterofl_flwr.secure import shamir
from heterofl_flwr.secure.client import add_private, allowed_rings, pair_key, rings_by_slice, view_of
from heterofl_flwr.secure.keys import TAG_BYTES, Words, add_stream, digest, public_of
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.slices import (
    COUNTS,
    Counts,
    Places,
    Slice,
    classes_of,
    count_holders,
    meet,
    size,
    union,
    whole,
)

SEALED_KEY = shamir.SHARE_BYTES + TAG_BYTES

Revealed = Mapping[int, tuple[Sequence[bytes], Sequence[bytes]]]
"""What clients revealed: shares of seeds and of keys, as ``ClientRound.reveal`` returns them."""


class ServerRound:
    """A sum of masked vectors over the entries of the global model.

    ``shares`` are the sealed shares of keys of each client that sent them. Those are the members, whose changes can be
    added up.
    """

    def __init__(
        self, roster: Roster, shapes: Mapping[str, Sequence[int]], shares: Mapping[int, Sequence[bytes]]
    ) -> None:
        self.roster, self.members = roster, sorted(shares)
        self._shares, self._rings = shares, rings_by_slice(roster, self.members)
        counts = union(roster.slices)
        self._whole: Slice = {**whole(shapes), **{name: own for name, own in counts.items() if name.startswith(COUNTS)}}
        self._total = np.zeros(size(self._whole), np.uint32)
        self._places: dict[int, Places] = {}
        self._sealed: dict[int, Sequence[bytes]] = {}  # seeds' shares of each survivor
        self._hashes: dict[int, Sequence[bytes]] = {}
        self._open: set[int] = set()

    def _others(self, client: int, some: Collection[int]) -> list[int]:
        return sorted(self.roster.neighbours[client].intersection(some))

    @property
    def survivors(self) -> list[int]:
        """The clients whose masked vectors were added."""
        return sorted(self._sealed)

    def shares_for(self, client: int) -> list[bytes]:
        """Return the sealed shares of keys that a client is to get."""
        return [self._from(self._shares, other, client) for other in self._others(client, self.members)]

    def seeds_for(self, client: int) -> list[bytes]:
        """Return the sealed shares of seeds that a client is to get."""
        everybody = self.members
        return [
            self._sealed[other][self._others(other, everybody).index(client)]
            for other in self._others(client, self.survivors)
        ]

    def _from(self, shares: Mapping[int, Sequence[bytes]], sender: int, receiver: int) -> bytes:
        return shares[sender][self._others(sender, range(len(self.roster.clients))).index(receiver)]

    def add(self, client: int, vector: Words, sealed: Sequence[bytes], hashes: Sequence[bytes]) -> None:
        """Add a member's masked vector; ``ReplyError`` if it does not fit, and then nothing has changed."""
        number = self.roster.clients[client][0]
        own, rings = self.roster.slices[number], len(self._rings[number])
        lengths = {len(text) for text in sealed} | {rings * shamir.SHARE_BYTES + TAG_BYTES}
        if vector.dtype != np.uint32 or vector.shape != (size(own),):
            raise ReplyError(
                f"reply refused: its masked change is {vector.dtype} of shape {vector.shape}, expected uint32 of shape "
                f"{(size(own),)}"
            )
        if len(sealed) != len(self._others(client, self.members)) or len(lengths) > 1 or len(hashes) != rings:
            raise ReplyError("reply refused: it has not one sealed share of its seeds for each of its neighbours")
        self._place(number).add(self._total, vector)
        self._sealed[client], self._hashes[client] = sealed, hashes

    def _place(self, number: int) -> Places:
        if number not in self._places:
            self._places[number] = Places(self._whole, self.roster.slices[number])
        return self._places[number]

    def unmask(self, revealed: Revealed) -> None:
        """Take the masks off the sum, in the rings in which that is allowed."""
        self._open = allowed_rings(self.roster, self.members, self.survivors)
        seeds, keys = self._join(revealed)
        by_slice: dict[int, list[int]] = {}
        for client in self.survivors:
            by_slice.setdefault(self.roster.clients[client][0], []).append(client)
        numbers = self.roster.by_slice(self.members)
        for number, clients in by_slice.items():
            own = self.roster.slices[number]
            rings, masks = count_holders(own, self.roster.slices, numbers), np.zeros(size(own), np.uint32)
            for ring in self._open.intersection(*(seeds[client] for client in clients)):
                add_private(masks, rings, ring, [seeds[client][ring] for client in clients], -1)
            self._place(number).add(self._total, masks)
            self._remove_pairs(number, clients, keys)

    def _remove_pairs(self, number: int, clients: Sequence[int], keys: Mapping[int, bytes]) -> None:
        """Take off the masks that clients of a slice share with those who were lost."""
        view, own = view_of(self.roster, self.members), self.roster.slices[number]
        for lost, private in keys.items():
            both = meet(own, self.roster.slices[self.roster.clients[lost][0]])
            total = np.zeros(size(both), np.uint32)
            for client in self._others(lost, clients):
                key = pair_key(private, self.roster, view, lost, client)
                add_stream(total, key, 1 if lost < client else -1)  # the client's own has the other sign
            Places(self._whole, both).add(self._total, total)

    def _join(self, revealed: Revealed) -> tuple[dict[int, dict[int, bytes]], dict[int, bytes]]:
        """Return the seeds of survivors by ring, and the private keys of those who were lost."""
        survivors, shares = self.survivors, dict[tuple[int, int], dict[int, bytes]]()
        for helper, (own_seeds, own_keys) in revealed.items():
            there, others = self._others(helper, survivors), self._others(helper, self.members)
            for client, text in zip(there, own_seeds, strict=False):
                allowed = [ring for ring in self._rings[self.roster.clients[client][0]] if ring in self._open]
                if len(text) == len(allowed) * shamir.SHARE_BYTES:
                    for place, ring in enumerate(allowed):
                        share = text[place * shamir.SHARE_BYTES :][: shamir.SHARE_BYTES]
                        shares.setdefault((client, ring), {})[helper + 1] = share
            lost = [other for other in others if other not in there]
            for client, share in zip(lost, own_keys, strict=False):
                if len(share) == shamir.SHARE_BYTES:
                    shares.setdefault((client, 0), {})[helper + 1] = share
        seeds = {client: self._seeds(client, shares) for client in survivors}
        lost = [client for client in self.members if client not in self._sealed and self._others(client, survivors)]
        return seeds, {client: self._secret(client, 0, shares, self.roster.public(client, 1)) for client in lost}

    def _seeds(self, client: int, shares: Mapping[tuple[int, int], Mapping[int, bytes]]) -> dict[int, bytes]:
        rings = self._rings[self.roster.clients[client][0]]
        return {
            ring: self._secret(client, ring, shares, expected)
            for ring, expected in zip(rings, self._hashes[client], strict=True)
            if ring in self._open
        }

    def _secret(
        self, client: int, ring: int, shares: Mapping[tuple[int, int], Mapping[int, bytes]], expected: bytes
    ) -> bytes:
        """Return a secret of its shares, which is checked: a seed by its hash, a key (ring 0) by its public one."""
        found, threshold = shares.get((client, ring), {}), self.roster.threshold(client)
        secret = shamir.combine(found, threshold)
        if secret is None or (digest(secret) if ring else public_of(secret)) != expected:
            cause = "too few" if len(found) < threshold else "false"
            raise RoundError(
                f"round {self.roster.server_round}: the masks of the sum cannot be taken away: {len(found)} shares of "
                f"a secret of client {client} of the roster came, which are {cause}; expected {threshold} of "
                f"{len(self.roster.neighbours[client])}. Let more clients stay to the end of a round"
            )
        return secret

    def sums(self) -> dict[str, tuple[NDArray[np.int32], Counts]]:
        """Return for each parameter the sum of changes in steps, and how many clients count: 0 in closed rings."""
        before, after = (self.roster.by_slice(some) for some in (self.members, self.survivors))
        rings = count_holders(self._whole, self.roster.slices, before)
        counts = count_holders(self._whole, self.roster.slices, after)
        is_open = np.zeros(len(self.members) + 1, bool)
        is_open[list(self._open)] = True
        counts[~is_open[rings]] = 0
        found, start = {}, 0
        for name, axes in self._whole.items():
            shape = tuple(map(len, axes))
            end = start + int(np.prod(shape))
            found[name] = self._total[start:end].view(np.int32).reshape(shape), counts[start:end].reshape(shape)
            start = end
        for name in [name for name in found if name.startswith(COUNTS)]:
            self._count_rows(name.removeprefix(COUNTS), found)
        return found

    def _count_rows(self, name: str, found: dict[str, tuple[NDArray[np.int32], Counts]]) -> None:
        """Replace the holders of a parameter by how many of them count in each row."""
        numbers, holders = found.pop(COUNTS + name)
        if ((numbers < 0) | (numbers > holders))[holders > 0].any():
            raise RoundError(
                f"round {self.roster.server_round}: the sum of the numbers of clients that count in the rows of {name} "
                f"is impossible, so one of them sent something else than its change; nobody can see which"
            )
        total, counts = found[name]
        rows = np.where(holders > 0, numbers, 0).astype(np.uint16)
        by_entry = np.zeros_like(counts)
        classes = [classes_of(self.roster.slices, name, axis) for axis in range(1, counts.ndim)]
        place = np.ix_(self._whole[COUNTS + name][0], *(everywhere for everywhere, _ in classes))
        by_entry[place] = rows[np.ix_(np.arange(len(rows)), *(numbers for _, numbers in classes))]
        found[name] = total, by_entry
