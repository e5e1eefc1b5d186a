"""A client's side of a round of secure aggregation: four answers, each given once for each key.

What it keeps between them is a text with its secrets, for which it answers the next question alone: keys, shares of
them, the masked change, and shares of what others need to unmask the sum. A question out of turn, a second time or for
other keys is rejected, and a new round begins with fresh keys.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from secrets import token_bytes

import numpy as np
from numpy.typing import NDArray

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.secure import crypto
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.slices import add_part, overlap

Fill = Callable[[Roster, Plan, int], crypto.Words]
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
        sealed = [self._seal(other, self.roster.digest, share) for other, share in enumerate(shares)]
        return sealed, self._keep(next="train", roster=self.roster.to_bytes().decode())

    def mask(self, members: Sequence[int], sealed: Sequence[bytes], fill: Fill) -> tuple[Masked, bytes]:
        """Return the masked change, and what to keep; ``sealed`` are the shares of the members' keys."""
        self._turn("train")
        roster, view = self.roster, self.roster.view(members)
        self._check(members, range(len(roster.clients)), sealed)
        own = roster.slices[roster.clients[self.number][0]]
        rings = roster.count(own, members)
        vector = fill(roster, own, len(members))
        vector[rings < roster.least] = 0  # of so few, nothing is added up
        add_pairs(vector, roster, view, self.number, self.private("mask"), set(members) - {self.number})
        seeds = {ring: token_bytes(crypto.KEY_BYTES) for ring in roster.shared_rings(rings)}
        for ring, seed in seeds.items():
            add_private(vector, rings == ring, [seed])
        shares = [crypto.split(seed, roster.threshold, len(roster.clients)) for seed in seeds.values()]
        to_send = [self._seal(other, view, b"".join(own[other] for own in shares)) for other in members]
        kept = self._keep(next="reveal", members=list(members), sealed=[text.hex() for text in sealed])
        return (vector, to_send, [crypto.digest(seed) for seed in seeds.values()]), kept

    def reveal(self, survivors: Sequence[int], sealed: Sequence[bytes]) -> list[bytes]:
        """Return for each member shares of its seeds, if its change is in the sum; of its key, if it was lost.

        It is asked this once in a round, so nobody gets both of one client from it. Of seeds it gives those of rings
        that may be unmasked. A share that was sealed for another round, sender or set of members is left out.
        """
        self._turn("reveal")
        roster, members = self.roster, self._kept["members"]
        self._check(survivors, members, sealed)
        allowed, view = roster.open_rings(members, survivors), roster.view(members)
        rings, found = roster.rings_by_slice(members), []
        seeds = dict(zip(survivors, sealed, strict=True))
        for other, key in zip(members, self._kept["sealed"], strict=True):
            if other in seeds:
                shares = crypto.cut(self._unseal(other, view, seeds[other]))
                own = zip(shares, rings[roster.clients[other][0]], strict=False)
                found.append(b"".join(share for share, ring in own if ring in allowed))
            else:
                found.append(self._unseal(other, roster.digest, bytes.fromhex(key)))
        return found

    def _turn(self, asked: str) -> None:
        if self._kept["next"] != asked:
            raise ReplyError(
                f"the server asked to {asked} out of turn, or a second time under the same keys; expected "
                f"{self._kept['next']}, or a new round"
            )

    def _keep(self, **more: object) -> bytes:
        return json.dumps({**self._kept, **more}).encode()

    def _seal(self, receiver: int, about: bytes, plain: bytes) -> bytes:
        """Return what only another client can read, about the roster or a view."""
        key = crypto.agree(self.private("box"), self.roster.public(receiver, 2), about, "share", self.number, receiver)
        return crypto.seal(key, plain)

    def _unseal(self, sender: int, about: bytes, sealed: bytes) -> bytes:
        key = crypto.agree(self.private("box"), self.roster.public(sender, 2), about, "share", sender, self.number)
        return crypto.unseal(key, sealed)

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


def add_pairs(vector: crypto.Words, roster: Roster, view: bytes, client: int, private: bytes, others: set[int]) -> None:
    """Add the masks that a client shares with others, where both hold an entry, in place.

    Of a pair the first adds what the second subtracts.
    """
    own, by_slice = roster.slices[roster.clients[client][0]], defaultdict[int, list[int]](list)
    for other in others:
        by_slice[roster.clients[other][0]].append(other)
    for number, some in by_slice.items():
        both = overlap(own, roster.slices[number])
        total = np.zeros(both.parameters, np.uint32)
        for other in some:
            pair = min(client, other), max(client, other)
            key = crypto.agree(private, roster.public(other, 1), view, "mask", *pair)
            crypto.add_stream(total, key, 1 if client < other else -1)
        add_part(vector, own, both, total)


def add_private(vector: crypto.Words, where: NDArray[np.bool_], seeds: Sequence[bytes], sign: int = 1) -> None:
    """Add the streams of seeds to some entries, or subtract them, in place."""
    total = np.zeros(np.count_nonzero(where), np.uint32)
    for seed in seeds:
        crypto.add_stream(total, seed, sign)
    vector[where] += total
