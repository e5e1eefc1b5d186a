"""A client's side of a round of secure aggregation: four answers, each given once for each key.

What it keeps between them is a text with its secrets, for which it answers the next question alone: keys, shares of
them, the masked change, and shares of what others need to unmask the sum. A question out of turn, a second time or for
other keys is rejected, and a new round begins with fresh keys.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from secrets import token_bytes

import numpy as np
from numpy.typing import NDArray

from heterofl_flwr.errors import ReplyError
from heterofl_flwr.secure import crypto
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.slices import Overlap, Slice, count_holders

Fill = Callable[[Roster, Slice, int], crypto.Words]
"""Gives the vector of a slice: the client's steps, where so many clients are added up."""

Masked = tuple[crypto.Words, list[bytes], list[bytes]]
"""What a client sends of its change: the masked vector, sealed shares of its seeds, and a hash of each seed."""


def make_keys() -> tuple[list[bytes], bytes]:
    """Return two fresh public keys, for masks and for sealing shares, and the text to keep, with the private ones."""
    (mask, public), (box, other) = crypto.new_pair(), crypto.new_pair()
    return [public, other], json.dumps({"next": "shares", "mask": mask.hex(), "box": box.hex()}).encode()


class ClientRound:
    """A client in a round: what it has kept, and the roster that it is sent now, or that it has kept too."""

    def __init__(self, kept: bytes, roster: Roster | None = None) -> None:
        self._kept = json.loads(kept)
        self.roster = roster or Roster.from_bytes(self._kept.get("roster"))

    def private(self, use: str) -> bytes:
        """Return one of the client's private keys: ``mask`` or ``box``."""
        return bytes.fromhex(self._kept[use])

    @cached_property
    def number(self) -> int:
        """The client's number in the roster, which it finds by its own keys: nobody else has them."""
        own = [crypto.public_of(self.private(use)).hex() for use in ("mask", "box")]
        found = [number for number, (_, *keys) in enumerate(self.roster.clients) if keys == own]
        if not found:
            raise ReplyError("the server sent a roster without this client's keys: it is that of another round")
        return found[0]

    def share_keys(self) -> tuple[list[bytes], bytes]:
        """Return a sealed share of the private key for masks for each client of the roster, and what to keep."""
        self._turn("shares")
        shares = crypto.split(self.private("mask"), self.roster.threshold, len(self.roster.clients))
        about = self.roster.digest
        sealed = [crypto.seal(self._box(self.number, other, about), share) for other, share in enumerate(shares)]
        return sealed, self._keep(next="train", roster=self.roster.to_bytes().decode())

    def mask(self, members: Sequence[int], sealed: Sequence[bytes], fill: Fill) -> tuple[Masked, bytes]:
        """Return the masked change, and what to keep; ``sealed`` are the shares of the members' keys."""
        self._turn("train")
        roster, view = self.roster, self.roster.view(members)
        self._check(members, range(len(roster.clients)), sealed)
        own = roster.slices[roster.clients[self.number][0]]
        rings = count_holders(own, roster.slices, roster.by_slice(members))
        vector = fill(roster, own, len(members))
        vector[rings < roster.least] = 0  # of so few, nothing is added up
        add_pairs(vector, roster, view, self.number, {self.number: self.private("mask")}, members)
        seeds = {ring: token_bytes(crypto.KEY_BYTES) for ring in roster.shared_rings(rings)}
        for ring, seed in seeds.items():
            add_private(vector, rings, ring, [seed])
        shares = [crypto.split(seed, roster.threshold, len(roster.clients)) for seed in seeds.values()]
        to_send = [
            crypto.seal(self._box(self.number, other, view), b"".join(own[other] for own in shares))
            for other in members
        ]
        kept = self._keep(next="reveal", members=list(members), sealed=[text.hex() for text in sealed])
        return (vector, to_send, [crypto.digest(seed) for seed in seeds.values()]), kept

    def reveal(self, survivors: Sequence[int], sealed: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Return shares: of the seeds of those whose change is in the sum, and of the keys of those who were lost.

        It is asked this once in a round, so nobody gets both of one client from it. Of seeds it gives those of rings
        that may be unmasked. A share that was sealed for another round, sender or set of members is left out.
        """
        self._turn("reveal")
        roster, members = self.roster, self._kept["members"]
        self._check(survivors, members, sealed)
        allowed, view = roster.open_rings(members, survivors), roster.view(members)
        rings, seeds = roster.rings_by_slice(members), []
        for other, text in zip(survivors, sealed, strict=True):
            plain, own = crypto.unseal(self._box(other, self.number, view), text), rings[roster.clients[other][0]]
            found = crypto.cut(plain)
            seeds.append(b"".join(share for share, ring in zip(found, own, strict=False) if ring in allowed))
        kept = dict(zip(members, map(bytes.fromhex, self._kept["sealed"]), strict=True))
        lost = [other for other in members if other not in survivors]
        return seeds, [crypto.unseal(self._box(other, self.number, roster.digest), kept[other]) for other in lost]

    def _turn(self, asked: str) -> None:
        if self._kept["next"] != asked:
            raise ReplyError(
                f"the server asked to {asked} out of turn, or a second time under the same keys; expected "
                f"{self._kept['next']}, or a new round"
            )

    def _keep(self, **more: object) -> bytes:
        return json.dumps({**self._kept, **more}).encode()

    def _box(self, sender: int, receiver: int, about: bytes) -> bytes:
        """Return the key that seals what one client, this or another, sends to the other about the roster or a view."""
        other = receiver if sender == self.number else sender
        return crypto.agree(self.private("box"), self.roster.public(other, 2), about, "share", sender, receiver)

    def _check(self, clients: Sequence[int], of: Collection[int], sealed: Sequence[bytes]) -> None:
        """Reject clients that are not among some others, each once and in order; and too few, or without this one."""
        least = self.roster.threshold
        if list(clients) != sorted(set(of).intersection(clients)) or len(sealed) != len(clients):
            raise ReplyError("the server named other clients than those that take part, or not each of them once")
        if self.number not in clients or len(clients) < least:
            raise ReplyError(
                f"the server named {len(clients)} clients whose changes are to be added up, expected this one and in "
                f"all at least {least}: of fewer nobody could take the masks away"
            )


def add_pairs(
    vector: crypto.Words,
    roster: Roster,
    view: bytes,
    client: int,
    private: Mapping[int, bytes],
    others: Collection[int],
    sign: int = 1,
) -> None:
    """Add the masks that a client shares with others, where both hold an entry, or take them off again, in place.

    Of a pair the first adds what the second subtracts. The private key of one of them is enough.
    """
    own, by_slice = roster.slices[roster.clients[client][0]], dict[int, list[int]]()
    for other in others:
        by_slice.setdefault(roster.clients[other][0], []).append(other)
    for number, some in by_slice.items():
        both = Overlap(own, roster.slices[number])
        total = np.zeros(both.size, np.uint32)
        for other in set(some) - {client}:
            known, unknown = (client, other) if client in private else (other, client)
            pair = min(client, other), max(client, other)
            key = crypto.agree(private[known], roster.public(unknown, 1), view, "mask", *pair)
            crypto.add_stream(total, key, sign if client < other else -sign)
        both.add(vector, total)


def add_private(
    vector: crypto.Words, rings: NDArray[np.float32], ring: int, seeds: Sequence[bytes], sign: int = 1
) -> None:
    """Add the streams of seeds to the entries of a ring, or subtract them, in place."""
    where = rings == ring
    total = np.zeros(np.count_nonzero(where), np.uint32)
    for seed in seeds:
        crypto.add_stream(total, seed, sign)
    vector[where] += total
