"""A client's side of a round of secure aggregation: its answers to five questions of the server.

The client sends, in this order: its public keys; shares of its private key for masks; its masked change; shares that
unmask the sum, except for classifier rows; shares that unmask classifier rows. With the same keys, the client answers
no question twice.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from secrets import token_bytes
from typing import NamedTuple, Protocol

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.secure import crypto
from heterofl_flwr.secure.masks import add_pairs, add_private, places_of
from heterofl_flwr.secure.roster import Part, Roster, open_rings, parts_by_slice

Fill = Callable[[Roster, Plan, int], crypto.Words]
"""Function that returns the client's change as integers: multiples of the fixed-point step.

Its arguments are the roster, the client's slice and the number of clients in the sum.
"""


class Dealt(NamedTuple):
    """Encrypted shares of secrets, and hashes of the decrypted shares.

    A sender's lists have an item for each receiver. A receiver's lists have an item for each sender.
    """

    sealed: list[bytes]
    hashes: list[bytes]


class Masked(NamedTuple):
    """A client's masked change, encrypted shares of the seeds of its private masks, and a hash of each seed."""

    vector: crypto.Words
    shares: Dealt
    digests: list[bytes]


def make_keys() -> tuple[list[bytes], bytes]:
    """Return public keys for masks and for shares, and a text with the private keys."""
    (mask, public), (box, box_public) = crypto.new_pair(), crypto.new_pair()
    return [public, box_public], json.dumps({"next": "shares", "mask": mask.hex(), "box": box.hex()}).encode()


class NodeRecords(Protocol):
    """Storage of a node for named records. The records outlive the run and the process that wrote them."""

    def read(self, name: str) -> bytes | None:
        """Return the record with this name; None if there is no such record."""

    def write(self, name: str, data: bytes) -> None:
        """Write the record with this name to the disk."""


class MaskedRounds:
    """For each run, the last round in which this client masked a change.

    A client masks only one change in a round: from two sums of the same round, the server could compute a single
    client's change. ``memory`` and ``records`` both store the rounds. ``memory`` is deleted with the node's Flower
    context; ``records`` remain.
    """

    KEY = "masked-rounds"

    def __init__(self, memory: dict[str, bytes], records: NodeRecords | None = None) -> None:
        self._memory, self._records = memory, records

    def last(self, run: int) -> int:
        """Return the last round of a run in which this client masked a change; 0 if it never did."""
        rounds = [json.loads(self._memory.get(self.KEY, b"{}")).get(str(run), 0)]
        if self._records is not None and (record := self._records.read(f"{self.KEY}-{run:016x}")) is not None:
            rounds.append(int(record))
        return int(max(rounds))

    def note(self, run: int, server_round: int) -> None:
        """Record that this client masks a change in this round; call this before the masked change is sent.

        Raise ``ReplyError`` if this client masked a change in this round or a later round of the run.
        """
        if server_round <= (masked_round := self.last(run)):
            raise ReplyError(
                f"the server asks for a masked change in round {server_round}, but the last one was in round "
                f"{masked_round} of this run; expected a later round: from two sums of the same round, the server "
                f"could compute this client's change; nodes that share a states-path need a partition-id each"
            )
        rounds = json.loads(self._memory.get(self.KEY, b"{}"))
        self._memory[self.KEY] = json.dumps({**rounds, str(run): server_round}).encode()
        if self._records is not None:
            self._records.write(f"{self.KEY}-{run:016x}", str(server_round).encode())


class ClientRound:
    """One client in a round of secure aggregation.

    ``secrets`` is the text that the client stored after its previous answer. If ``roster`` is None, the roster is
    read from ``secrets``.
    """

    def __init__(self, secrets: bytes, roster: Roster | None = None) -> None:
        self._secrets = json.loads(secrets)
        self.roster = roster or Roster.from_bytes(self._secrets.get("roster"))

    def private(self, use: str) -> bytes:
        """Return the private key for masks (``mask``) or for encrypting shares (``box``)."""
        return bytes.fromhex(self._secrets[use])

    @cached_property
    def number(self) -> int:
        """Index of this client in the roster."""
        keys = [crypto.public_of(self.private(use)).hex() for use in ("mask", "box")]
        numbers = [number for number, (_, *pair) in enumerate(self.roster.clients) if pair == keys]
        if not numbers:
            raise ReplyError("the server sent a roster without this client's keys: it is that of another round")
        return numbers[0]

    def share_keys(self, holders: int = 2) -> tuple[Dealt, bytes]:
        """Return encrypted shares of the private mask key, and the text to store for the next answer.

        Raise ``ReplyError`` if the server would unmask sums of fewer than ``holders`` clients.
        """
        self._turn("shares")
        roster = self.roster
        if roster.least < holders:
            raise ReplyError(
                f"the server would unmask sums of {roster.least} clients, and this node takes part in sums of at least "
                f"{holders} (secure-holders of its node config): raise holders of secure-sum"
            )
        shares = crypto.split(self.private("mask"), roster.threshold, len(roster.clients))
        dealt = self._deal(range(len(roster.clients)), roster.digest, [shares])
        return dealt, self._keep(next="train", roster=roster.to_bytes().decode())

    def mask(self, members: Sequence[int], keys: Dealt, fill: Fill, rounds: MaskedRounds) -> tuple[Masked, bytes]:
        """Return this client's masked change, and the text to store for the next answer.

        ``members`` are the clients that sent shares of their private keys. ``keys`` has the shares that members sent
        to this client. ``fill`` returns the change without masks. ``rounds`` raises ``ReplyError`` for a second change
        in a round.
        """
        self._turn("train")
        roster, view = self.roster, self.roster.view(members)
        self._check(members, range(len(roster.clients)), keys)
        rounds.note(roster.run, roster.server_round)
        plan = roster.slice_of(self.number)
        parts = roster.parts(plan, roster.count(plan, members))
        vector = fill(roster, plan, len(members))
        vector[parts == 0] = 0  # too few holders: these entries stay masked
        add_pairs(vector, roster, view, self.number, self.private("mask"), set(members) - {self.number})
        places = places_of(parts, roster)
        seeds = [token_bytes(crypto.KEY_BYTES) for _ in places]
        for place, seed in zip(places.values(), seeds, strict=True):
            add_private(vector, place, [seed])
        shares = [crypto.split(seed, roster.threshold, len(roster.clients)) for seed in seeds]
        secrets_saved = self._keep(next="reveal", members=list(members), keys=_as_text(keys))
        return Masked(vector, self._deal(members, view, shares), [crypto.digest(seed) for seed in seeds]), secrets_saved

    def reveal(self, survivors: Sequence[int], seeds: Dealt) -> tuple[list[bytes], bytes]:
        """Return decrypted shares, and the text to store for the next answer.

        ``survivors`` are the members whose masked change arrived. ``seeds`` has encrypted shares of the survivors' mask
        seeds. The result has, for each survivor, this client's shares of the survivor's seeds, and for each other
        member, this client's share of the member's private key. For no member does it have both: the server must not be
        able to restore the seeds and the private key of the same member. Shares of seeds for classifier rows, and for
        rings that must stay masked (see ``open_rings``), are left out.
        """
        self._turn("reveal")
        roster, members = self.roster, self._secrets["members"]
        self._check(survivors, members, seeds)
        rings, view = open_rings(roster, tuple(members), tuple(survivors)), roster.view(members)
        by_survivor = dict(zip(survivors, zip(*seeds, strict=True), strict=True))
        answer = []
        for member, pair in zip(members, zip(*_from_text(self._secrets["keys"]), strict=True), strict=True):
            if member in by_survivor:
                shares = self._shares(member, view, *by_survivor[member])
                parts = [part for part in shares if roster.ring_of(part) in rings and not roster.is_rows(part)]
                answer.append(b"".join(shares[part] for part in parts))
            else:
                answer.append(b"".join(self._open(member, roster.digest, *pair)))
        return answer, self._keep(next="rows", survivors=list(survivors), seeds=_as_text(seeds), keys=[[], []])

    def reveal_rows(self, numbers: Mapping[Part, int]) -> list[bytes]:
        """Return this client's shares of the survivors' seeds for the parts in ``numbers``, which are classifier rows.

        The keys of ``numbers`` are the parts that the server wants to unmask. A part's value is the number of clients
        that trained a row, for the row of the part that the fewest clients trained. Raise ``ReplyError`` if a value is
        less than ``Roster.least`` or more than the number of members that hold the part, or if a part has no classifier
        rows or must stay masked (see ``open_rings``).
        """
        self._turn("rows")
        roster, members, survivors = self.roster, self._secrets["members"], self._secrets["survivors"]
        rings, view = open_rings(roster, tuple(members), tuple(survivors)), roster.view(members)
        for part, number in numbers.items():
            ring = roster.ring_of(part)
            if not roster.is_rows(part) or ring not in rings or not roster.least <= number <= ring:
                raise ReplyError(
                    f"the server asked for classifier rows that {number} clients trained, expected at least "
                    f"{roster.least}, and rows of a ring that is open"
                )
        seeds = zip(*_from_text(self._secrets["seeds"]), strict=True)
        answer = []
        for survivor, pair in zip(survivors, seeds, strict=True):
            shares = self._shares(survivor, view, *pair)
            answer.append(b"".join(share for part, share in shares.items() if part in numbers))
        return answer

    def _turn(self, question: str) -> None:
        if self._secrets["next"] != question:
            raise ReplyError(
                f"the server asked to {question} out of turn, or a second time under the same keys; expected "
                f"{self._secrets['next']}, or a new round"
            )

    def _keep(self, **values: object) -> bytes:
        return json.dumps({**self._secrets, **values}).encode()

    @cached_property
    def _parts(self) -> list[list[Part]]:
        return parts_by_slice(self.roster, tuple(self._secrets["members"]))

    def _deal(self, receivers: Sequence[int], about: bytes, shares: Sequence[Sequence[bytes]]) -> Dealt:
        private, sealed, hashes = self.private("box"), [], []
        for receiver in receivers:
            key = crypto.agree(private, self.roster.public(receiver, 2), about, "share", self.number, receiver)
            texts = [row[receiver] for row in shares]
            sealed.append(crypto.seal(key, b"".join(texts)))
            hashes.append(crypto.hash_shares(texts))
        return Dealt(sealed, hashes)

    def _open(self, sender: int, about: bytes, sealed: bytes, hashes: bytes) -> list[bytes]:
        public = self.roster.public(sender, 2)
        key = crypto.agree(self.private("box"), public, about, "share", sender, self.number)
        shares = crypto.cut(crypto.unseal(key, sealed))
        return shares if crypto.hash_shares(shares) == hashes else []

    def _shares(self, sender: int, view: bytes, sealed: bytes, hashes: bytes) -> dict[Part, bytes]:
        shares, parts = self._open(sender, view, sealed, hashes), self._parts[self.roster.clients[sender][0]]
        return dict(zip(parts, shares, strict=True)) if len(shares) == len(parts) else {}

    def _check(self, clients: Sequence[int], members: Collection[int], dealt: Dealt) -> None:
        minimum = self.roster.threshold
        if list(clients) != sorted(set(members).intersection(clients)) or {*map(len, dealt)} != {len(clients)}:
            raise ReplyError("the server named other clients than those that take part, or not each of them once")
        if self.number not in clients or len(clients) < minimum:
            raise ReplyError(
                f"the server named {len(clients)} clients whose changes are to be added up, expected this one and in "
                f"all at least {minimum}: with fewer clients, nobody could remove the masks"
            )


def _as_text(dealt: Dealt) -> list[list[str]]:
    return [[text.hex() for text in texts] for texts in dealt]


def _from_text(texts: list[list[str]]) -> Dealt:
    return Dealt(*([bytes.fromhex(text) for text in column] for column in texts))
