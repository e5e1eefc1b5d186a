"""A client's side of a round of secure aggregation: four answers, each given once for each key.

What it keeps between them is a text with its secrets, for which it answers the next question alone: keys, shares of
them, the masked change, and shares of what others need to unmask the sum. A question out of turn, a second time or for
other keys is rejected, and a new round begins with fresh keys.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from secrets import token_bytes
from typing import NamedTuple

import numpy as np

from heterofl_flwr.errors import ReplyError
from heterofl_flwr.secure import shamir
from heterofl_flwr.secure.keys import KEY_BYTES, Words, add_stream, agree, digest, new_pair, public_of, seal, unseal
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.slices import Counts, Places, Slice, count_holders, meet, open_rings


@dataclass(frozen=True)
class Secrets:
    """What a client keeps during a round.

    Attributes
    ----------
    next
        The question that it answers next: ``shares``, ``train`` or ``reveal``.
    mask, box
        Its private keys: for masks, of which others get shares, and for sealing shares.
    roster
        The roster that it has seen.
    members
        The clients that its masks are for.
    sealed
        The shares of others' private keys, as they came.
    """

    next: str
    mask: str
    box: str
    roster: str = ""
    members: Sequence[int] = ()
    sealed: Sequence[str] = ()

    def to_bytes(self) -> bytes:
        """Return the text in which a client keeps them."""
        return json.dumps(asdict(self)).encode()


class Masked(NamedTuple):
    """What a client sends of its change: the masked vector, sealed shares of its seeds, and a hash of each seed."""

    vector: Words
    shares: list[bytes]
    hashes: list[bytes]


Fill = Callable[[Roster, Slice, int], Words]
"""Gives the vector of a slice: the client's steps, where so many clients are added up."""


def make_keys() -> tuple[list[bytes], Secrets]:
    """Return two fresh public keys, for masks and for shares, and what to keep."""
    (mask, public), (box, other) = new_pair(), new_pair()
    return [public, other], Secrets("shares", mask.hex(), box.hex())


@dataclass(frozen=True)
class ClientRound:
    """A client in a round whose roster it knows."""

    secrets: Secrets
    roster: Roster
    number: int = field(init=False)

    def __post_init__(self) -> None:
        """Find the client by its own keys, which nobody else has."""
        own = [public_of(bytes.fromhex(key)).hex() for key in (self.secrets.mask, self.secrets.box)]
        numbers = [number for number, (_, *keys) in enumerate(self.roster.clients) if keys == own]
        if len(numbers) != 1:
            raise ReplyError("the server sent a roster without this client's keys: it is that of another round")
        object.__setattr__(self, "number", numbers[0])

    @property
    def slice_number(self) -> int:
        """The number of the client's slice."""
        return self.roster.clients[self.number][0]

    def _others(self, members: Sequence[int]) -> list[int]:
        """Return those of some clients with whom this one shares secrets, itself included."""
        return sorted(self.roster.neighbours[self.number].intersection(members))

    def _box(self, sender: int, receiver: int, about: bytes, use: str) -> bytes:
        """Return the key that seals what one client, this or another, sends to the other."""
        other = receiver if sender == self.number else sender
        private = bytes.fromhex(self.secrets.box)
        return agree(private, self.roster.public(other, 2), about, use, sender, receiver)

    def share_keys(self) -> tuple[list[bytes], Secrets]:
        """Return a sealed share of the private key for masks for each neighbour, in order, and what to keep."""
        if self.secrets.next != "shares":
            raise ReplyError("the server asked a second time for shares of the same key")
        others = self._others(range(len(self.roster.clients)))
        threshold = self.roster.threshold(self.number)
        shares = shamir.split(bytes.fromhex(self.secrets.mask), threshold, [other + 1 for other in others])
        about = self.roster.digest
        sealed = [
            seal(self._box(self.number, other, about, "key"), share)
            for other, share in zip(others, shares, strict=True)
        ]
        return sealed, replace(self.secrets, next="train", roster=self.roster.to_bytes().decode())

    def mask(self, members: Sequence[int], sealed: Sequence[bytes], fill: Fill) -> tuple[Masked, Secrets]:
        """Return the masked change, and what to keep; ``sealed`` are the shares of the members among the neighbours."""
        if self.secrets.next != "train":
            raise ReplyError("the server asked a second time for a change under the same masks")
        others = self._others(members)
        if not set(members) <= set(range(len(self.roster.clients))):
            raise ReplyError("the server named members that are not in its roster")
        if self.number not in others or len(others) < self.roster.threshold(self.number) or len(sealed) != len(others):
            raise ReplyError(
                f"{len(others)} clients are left that share secrets with this one, expected at least "
                f"{self.roster.threshold(self.number)}: nobody could take its masks away"
            )
        own, view = self.roster.slices[self.slice_number], view_of(self.roster, members)
        rings = count_holders(own, self.roster.slices, self.roster.by_slice(members))
        vector = fill(self.roster, own, len(members))
        vector[rings < self.roster.least] = 0  # of so few, nothing is added up
        self._add_pairs(vector, own, view, others)
        seeds = {ring: token_bytes(KEY_BYTES) for ring in rings_of(rings, self.roster.least)}
        for ring, seed in seeds.items():
            add_private(vector, rings, ring, [seed])
        hashes = [digest(seed) for seed in seeds.values()]
        secrets = replace(
            self.secrets, next="reveal", members=tuple(members), sealed=tuple(text.hex() for text in sealed)
        )
        return Masked(vector, self._share_seeds(list(seeds.values()), view, others), hashes), secrets

    def _add_pairs(self, vector: Words, own: Slice, view: bytes, others: Sequence[int]) -> None:
        """Add the masks shared with neighbours, where both hold an entry: one of them adds, the other subtracts."""
        private, by_slice = bytes.fromhex(self.secrets.mask), dict[int, list[int]]()
        for other in others:
            by_slice.setdefault(self.roster.clients[other][0], []).append(other)
        for number, some in by_slice.items():
            places = Places(own, meet(own, self.roster.slices[number]))
            total = np.zeros(places.size, np.uint32)
            for other in some:
                if other != self.number:
                    key = pair_key(private, self.roster, view, self.number, other)
                    add_stream(total, key, 1 if self.number < other else -1)
            places.add(vector, total)

    def _share_seeds(self, seeds: Sequence[bytes], view: bytes, others: Sequence[int]) -> list[bytes]:
        """Return for each neighbour a sealed text with its share of each ring's seed."""
        points, threshold = [other + 1 for other in others], self.roster.threshold(self.number)
        shares = [shamir.split(seed, threshold, points) for seed in seeds]
        return [
            seal(self._box(self.number, other, view, "seeds"), b"".join(own[place] for own in shares))
            for place, other in enumerate(others)
        ]

    def reveal(self, survivors: Sequence[int], sealed: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Return shares: of the seeds of neighbours whose change is in the sum, and of the keys of those who were lost.

        It is asked this once in a round, so nobody gets both of one client from it. Of seeds it gives those of rings
        that may be unmasked. A share that was sealed for another round, sender or set of members is left out.
        """
        members, about = self.secrets.members, view_of(self.roster, self.secrets.members)
        others, there = self._others(members), self._others(survivors)
        least = self.roster.threshold(self.number)
        if self.secrets.next != "reveal" or not set(survivors) <= set(members) or len(sealed) != len(there):
            raise ReplyError("the server asked for shares of other clients than those that took part")
        if self.number not in there or len(there) < least:
            raise ReplyError(f"the server asked to unmask a sum of {len(there)} neighbours, expected at least {least}")
        allowed, by_slice = allowed_rings(self.roster, members, survivors), rings_by_slice(self.roster, members)
        seeds = []
        for other, text in zip(there, sealed, strict=True):
            rings = by_slice[self.roster.clients[other][0]]
            plain = unseal(self._box(other, self.number, about, "seeds"), text) or b""
            found = [plain[start : start + shamir.SHARE_BYTES] for start in range(0, len(plain), shamir.SHARE_BYTES)]
            fits = len(found) == len(rings)
            seeds.append(b"".join(own for own, ring in zip(found, rings, strict=fits) if fits and ring in allowed))
        kept = dict(zip(others, self.secrets.sealed, strict=True))
        keys = [
            unseal(self._box(lost, self.number, self.roster.digest, "key"), bytes.fromhex(kept[lost])) or b""
            for lost in others
            if lost not in there
        ]
        return seeds, keys


def view_of(roster: Roster, members: Sequence[int]) -> bytes:
    """Return the digest of a roster and of who is left of it, which all masks and shares of seeds depend on."""
    return digest(roster.digest, repr(sorted(members)).encode())


def pair_key(private: bytes, roster: Roster, view: bytes, own: int, other: int) -> bytes:
    """Return the key of the masks of two clients, from the private key of one of them."""
    return agree(private, roster.public(other, 1), view, "mask", min(own, other), max(own, other))


def rings_of(rings: Counts, least: int) -> list[int]:
    """Return the rings of a slice that enough clients hold, in order."""
    return [ring for ring in np.unique(rings).tolist() if ring >= least]


def rings_by_slice(roster: Roster, members: Sequence[int]) -> list[list[int]]:
    """Return for each slice the rings that its clients have seeds for, in order."""
    numbers = roster.by_slice(members)
    return [rings_of(count_holders(own, roster.small, numbers), roster.least) for own in roster.small]


def allowed_rings(roster: Roster, members: Sequence[int], survivors: Sequence[int]) -> set[int]:
    """Return the rings that may be unmasked: enough holders are left, and their masks hang together."""
    before, after = roster.by_slice(members), roster.by_slice(survivors)
    return open_rings(roster.small, before, after, roster.least) - roster.divided(survivors, members)


def add_private(vector: Words, rings: Counts, ring: int, seeds: Sequence[bytes], sign: int = 1) -> None:
    """Add the streams of seeds to the entries of a ring, or subtract them, in place."""
    where = np.flatnonzero(rings == ring)
    total = np.zeros(len(where), np.uint32)
    for seed in seeds:
        add_stream(total, seed, sign)
    vector[where] += total
