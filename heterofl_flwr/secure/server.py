"""The server's side of a round of secure aggregation: add up masked vectors, and take the masks off the sum."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from heterofl_flwr.errors import ReplyError, RoundError
from heterofl_flwr.secure import crypto
from heterofl_flwr.secure.client import add_pairs, add_private
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.slices import COUNTS, Overlap, as_state, classes_of, count_holders, size, whole

Revealed = Mapping[int, tuple[Sequence[bytes], Sequence[bytes]]]
"""What clients revealed: shares of seeds and of keys, as ``ClientRound.reveal`` returns them."""


class ServerRound:
    """A sum of masked vectors over the entries of the global model.

    ``shares`` are the sealed shares of keys of each client that sent them. Those are the members, whose changes can be
    added up.
    """

    def __init__(self, roster: Roster, shares: Mapping[int, Sequence[bytes]]) -> None:
        self.roster, self.members = roster, sorted(shares)
        self._shares, self._rings = shares, roster.rings_by_slice(self.members)
        self._whole = whole(roster.slices)
        self._total = np.zeros(size(self._whole), np.uint32)
        self._sealed: dict[int, Sequence[bytes]] = {}  # seeds' shares of each survivor
        self._hashes: dict[int, Sequence[bytes]] = {}
        self._open: set[int] = set()

    @property
    def survivors(self) -> list[int]:
        """The clients whose masked vectors were added."""
        return sorted(self._sealed)

    def keys_for(self, client: int) -> list[bytes]:
        """Return the sealed shares of the members' keys that a client is to get."""
        return [self._shares[other][client] for other in self.members]

    def seeds_for(self, client: int) -> list[bytes]:
        """Return the sealed shares of the survivors' seeds that a client is to get."""
        return [self._sealed[other][self.members.index(client)] for other in self.survivors]

    def add(self, client: int, vector: crypto.Words, sealed: Sequence[bytes], hashes: Sequence[bytes]) -> None:
        """Add a member's masked vector; ``ReplyError`` if it does not fit, and then nothing has changed."""
        number = self.roster.clients[client][0]
        expected, rings = (size(self.roster.slices[number]),), len(self._rings[number])
        if vector.dtype != np.uint32 or vector.shape != expected:
            found = f"{vector.dtype} of shape {vector.shape}"
            raise ReplyError(f"reply refused: its masked change is {found}, expected uint32 of shape {expected}")
        lengths = [rings * crypto.SHARE_BYTES + crypto.TAG_BYTES] * len(self.members)
        if list(map(len, sealed)) != lengths or len(hashes) != rings:
            raise ReplyError("reply refused: it has not one sealed share of its seeds for each client")
        self._add(number, vector)
        self._sealed[client], self._hashes[client] = sealed, hashes

    def _add(self, number: int, vector: crypto.Words) -> None:
        Overlap(self._whole, self.roster.slices[number]).add(self._total, vector)

    def unmask(self, revealed: Revealed) -> None:
        """Take the masks off the sum, in the rings in which that is allowed."""
        roster, survivors = self.roster, self.survivors
        self._open = roster.open_rings(self.members, survivors)
        shares = self._collect(revealed)
        lost = [client for client in self.members if client not in survivors]
        keys = {client: self._secret(client, 0, shares, roster.public(client, 1)) for client in lost}
        for number, own in enumerate(roster.slices):
            clients = [client for client in survivors if roster.clients[client][0] == number]
            if not clients:
                continue
            rings = count_holders(own, roster.slices, roster.by_slice(self.members))
            masks = np.zeros(len(rings), np.uint32)
            for place, ring in enumerate(self._rings[number]):
                if ring in self._open:
                    seeds = [self._secret(one, ring, shares, self._hashes[one][place]) for one in clients]
                    add_private(masks, rings, ring, seeds, -1)
            for client in clients:
                add_pairs(masks, roster, roster.view(self.members), client, keys, lost, -1)
            self._add(number, masks)

    def _collect(self, revealed: Revealed) -> Mapping[tuple[int, int], dict[int, bytes]]:
        """Return the shares of each client's secrets by ring, those of its key as ring 0, from whom they came."""
        shares: dict[tuple[int, int], dict[int, bytes]] = defaultdict(dict)
        lost = [client for client in self.members if client not in self._sealed]
        for helper, (seeds, keys) in revealed.items():
            for client, text in zip(self.survivors, seeds, strict=False):
                rings = [ring for ring in self._rings[self.roster.clients[client][0]] if ring in self._open]
                fits = len(text) == len(rings) * crypto.SHARE_BYTES
                for ring, share in zip(rings, crypto.cut(text) if fits else (), strict=fits):
                    shares[client, ring][helper] = share
            for client, share in zip(lost, keys, strict=False):
                if len(share) == crypto.SHARE_BYTES:
                    shares[client, 0][helper] = share
        return shares

    def _secret(
        self, client: int, ring: int, shares: Mapping[tuple[int, int], Mapping[int, bytes]], expected: bytes
    ) -> bytes:
        """Return a secret of its shares, which is checked: a seed by its hash, a key (ring 0) by its public one."""
        found, threshold = shares.get((client, ring), {}), self.roster.threshold
        secret = crypto.combine_shares(found, threshold) if len(found) >= threshold else b""
        if not secret or (crypto.digest(secret) if ring else crypto.public_of(secret)) != expected:
            cause = "too few" if len(found) < threshold else "false"
            raise RoundError(
                f"round {self.roster.server_round}: the masks of the sum cannot be taken away: {len(found)} shares of "
                f"a secret of client {client} of the roster came, which are {cause}; expected {threshold} of "
                f"{len(self.roster.clients)}. Let more clients stay to the end of a round"
            )
        return secret

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return for each parameter the sum of changes in steps, and how many clients count: 0 in closed rings."""
        before, after = (self.roster.by_slice(some) for some in (self.members, self.survivors))
        rings, counts = (count_holders(self._whole, self.roster.slices, number) for number in (before, after))
        counts[~np.isin(rings, list(self._open))] = 0
        totals, held = as_state(self._total.view(np.int32), self._whole), as_state(counts, self._whole)
        for name in [name for name in totals if name.startswith(COUNTS)]:
            own = name.removeprefix(COUNTS)
            held[own] = self._count_rows(own, totals.pop(name), held.pop(name))
        return {name: (total, held[name]) for name, total in totals.items()}

    def _count_rows(self, name: str, numbers: Tensor, holders: Tensor) -> Tensor:
        """Return how many clients count in each entry of a parameter whose rows belong to classes."""
        if ((holders > 0) & ((numbers < 0) | (numbers > holders))).any():
            raise RoundError(
                f"round {self.roster.server_round}: the sum of the numbers of clients that count in the rows of {name} "
                f"is impossible, so one of them sent something else than its change; nobody can see which"
            )
        counted = torch.where(holders > 0, numbers, 0)
        for axis, classes in enumerate(classes_of(self.roster.slices, name)[1:], 1):
            counted = counted.index_select(axis, torch.from_numpy(classes))
        return counted.float()
