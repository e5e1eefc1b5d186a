"""The server's side of a round of secure aggregation: add up masked vectors, and take the masks off the sum."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError, RoundError
from heterofl_flwr.secure import crypto
from heterofl_flwr.secure.client import add_pairs, add_private
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.slices import COUNTS, add_part, as_state, classes_of, whole


class ServerRound:
    """A sum of masked vectors over the entries of the global model.

    ``shares`` are the sealed shares of keys of each client that sent them. Those are the members, whose changes can be
    added up.
    """

    def __init__(self, roster: Roster, shares: Mapping[int, Sequence[bytes]]) -> None:
        self.roster, self.members = roster, sorted(shares)
        self._shares, self._rings = shares, roster.rings_by_slice(self.members)
        self._whole = whole(roster.slices)
        self._total = np.zeros(self._whole.parameters, np.uint32)
        self._sealed: dict[int, Sequence[bytes]] = {}  # seeds' shares of each survivor
        self._marks = {one: {0: roster.public(one, 1)} for one in self.members}  # of its key and of seeds, by ring
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
        expected, rings = (self.roster.slices[number].parameters,), self._rings[number]
        if vector.dtype != np.uint32 or vector.shape != expected:
            found = f"{vector.dtype} of shape {vector.shape}"
            raise ReplyError(f"reply refused: its masked change is {found}, expected uint32 of shape {expected}")
        lengths = [len(rings) * crypto.SHARE_BYTES + crypto.TAG_BYTES] * len(self.members)
        if list(map(len, sealed)) != lengths or len(hashes) != len(rings):
            raise ReplyError("reply refused: it has not one sealed share of its seeds for each client")
        add_part(self._total, self._whole, self.roster.slices[number], vector)
        self._sealed[client] = sealed
        self._marks[client].update(zip(rings, hashes, strict=True))

    def unmask(self, revealed: Mapping[int, Sequence[bytes]]) -> None:
        """Take the masks off the sum, in the rings in which that is allowed, with what ``ClientRound.reveal`` gave."""
        roster, survivors = self.roster, self.survivors
        self._open = roster.open_rings(self.members, survivors)
        shares = self._collect(revealed)
        # What a lost client would have added cancels what the others share with it.
        for client in [one for one in self.members if one not in survivors]:
            private, own = self._secret(client, 0, shares[client, 0]), roster.slices[roster.clients[client][0]]
            masks = np.zeros(own.parameters, np.uint32)
            add_pairs(masks, roster, roster.view(self.members), client, private, set(survivors))
            add_part(self._total, self._whole, own, masks)
        for number in {roster.clients[client][0] for client in survivors}:
            own, clients = roster.slices[number], [one for one in survivors if roster.clients[one][0] == number]
            rings, masks = roster.count(own, self.members), np.zeros(own.parameters, np.uint32)
            for ring in self._open.intersection(self._rings[number]):
                seeds = [self._secret(client, ring, shares[client, ring]) for client in clients]
                add_private(masks, rings == ring, seeds, -1)
            add_part(self._total, self._whole, own, masks)

    def _collect(self, revealed: Mapping[int, Sequence[bytes]]) -> defaultdict[tuple[int, int], dict[int, bytes]]:
        """Return the shares of each client's secrets by ring, those of its key as ring 0, from whom they came."""
        shares: defaultdict[tuple[int, int], dict[int, bytes]] = defaultdict(dict)
        for helper, texts in revealed.items():
            for client, text in zip(self.members, texts, strict=False):
                rings = [ring for ring in self._rings[self.roster.clients[client][0]] if ring in self._open]
                secrets = rings if client in self._sealed else [0]
                if len(text) == len(secrets) * crypto.SHARE_BYTES:
                    for ring, share in zip(secrets, crypto.cut(text), strict=True):
                        shares[client, ring][helper] = share
        return shares

    def _secret(self, client: int, ring: int, shares: Mapping[int, bytes]) -> bytes:
        """Return a secret of its shares, which is checked: a seed by its hash, a key (ring 0) by its public one."""
        threshold = self.roster.threshold
        secret = crypto.combine_shares(shares, threshold) if len(shares) >= threshold else b""
        if not secret or (crypto.digest(secret) if ring else crypto.public_of(secret)) != self._marks[client][ring]:
            cause = "too few" if len(shares) < threshold else "false"
            raise RoundError(
                f"round {self.roster.server_round}: the masks of the sum cannot be taken away: {len(shares)} shares of "
                f"a secret of client {client} of the roster came, which are {cause}; expected {threshold} of "
                f"{len(self.roster.clients)}. Let more clients stay to the end of a round"
            )
        return secret

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return for each parameter the sum of changes in steps, and how many clients count: 0 in closed rings."""
        rings, counts = (self.roster.count(self._whole, some) for some in (self.members, self.survivors))
        counts[~np.isin(rings, list(self._open))] = 0
        totals, held = as_state(self._total.view(np.int32), self._whole), as_state(counts, self._whole)
        for name in [name for name in totals if name.startswith(COUNTS)]:
            own = name.removeprefix(COUNTS)
            held[own] = self._count_rows(own, totals.pop(name), held.pop(name))
        return {name: (total, held[name].float()) for name, total in totals.items()}

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
        return counted
