"""The server's side of secure aggregation."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.secure import crypto
from heterofl_flwr.secure.client import Dealt, Masked
from heterofl_flwr.secure.masks import add_pairs, add_private, places_of
from heterofl_flwr.secure.overlaps import COUNTS, add_part, as_state, classes_of, whole
from heterofl_flwr.secure.roster import Part, Roster, open_rings, parts_by_slice

KEY_PART: Part = 0
"""Number used as ``Part`` for a client's private key. All other parts stand for the client's seeds."""

Shares = Mapping[tuple[int, Part], Mapping[int, bytes]]
"""Shares of secrets by (client, part), then by the client that revealed the share."""


class ServerRound:
    """The server in a round of secure aggregation.

    ``shares`` has, by client, the encrypted shares of the client's private key. The clients in ``shares`` are the
    members. The members whose masked vector has arrived are the survivors.

    Attributes
    ----------
    liars
        Clients that lied, each with the evidence.
    """

    def __init__(self, roster: Roster, shares: Mapping[int, Dealt]) -> None:
        self.roster, self.members = roster, sorted(shares)
        self.liars: dict[int, str] = {}
        self._keys, self._parts = shares, parts_by_slice(roster, tuple(self.members))
        self._union = whole(roster.slices)
        self._total = np.zeros(self._union.parameters, np.uint32)
        self._seeds: dict[int, tuple[Dealt, dict[Part, bytes]]] = {}  # by survivor: shares and hashes of seeds
        self._spoiled = np.zeros(self._union.parameters, np.int32)  # entries whose masks cannot be removed
        self._opened = np.zeros(self._union.parameters, np.bool_)
        self._accusers: defaultdict[int, set[int]] = defaultdict(set)  # by dealer: clients that got no usable shares

    @property
    def survivors(self) -> list[int]:
        """The clients whose masked vectors were added, sorted."""
        return sorted(self._seeds)

    @property
    def config_bytes(self) -> int:
        """Upper bound on the bytes of a client's shares, hashes and digests in one reply."""
        parts = max(map(len, self._parts))
        return (len(self.members) + 1) * (parts + 1) * (crypto.SHARE_BYTES + crypto.HASH_BYTES)

    @property
    def can_open(self) -> bool:
        """Whether enough clients remain to remove the masks."""
        return len(self._seeds) >= self.roster.threshold

    def keys_for(self, client: int) -> Dealt:
        """Return the share of each member's private key that was encrypted for ``client``."""
        pairs = ((self._keys[dealer].sealed[client], self._keys[dealer].hashes[client]) for dealer in self.members)
        return Dealt(*map(list, zip(*pairs, strict=True)))

    def seeds_for(self, client: int) -> Dealt:
        """Return the shares of each survivor's mask seeds that were encrypted for ``client``."""
        place = self.members.index(client)
        dealt = (self._seeds[dealer][0] for dealer in self.survivors)
        return Dealt(*map(list, zip(*((seed.sealed[place], seed.hashes[place]) for seed in dealt), strict=True)))

    def add(self, client: int, masked: Masked) -> None:
        """Add a member's masked vector; raise ``ReplyError`` if it is invalid."""
        vector, shares, digests = masked
        plan, parts = self.roster.slice_of(client), self._parts[self.roster.clients[client][0]]
        expected = (plan.parameters,)
        if vector.dtype != np.uint32 or vector.shape != expected:
            form = f"{vector.dtype} of shape {vector.shape}"
            raise ReplyError(f"reply refused: its masked change is {form}, expected uint32 of shape {expected}")
        if not fits(shares, len(self.members), len(parts)) or len(digests) != len(parts):
            raise ReplyError("reply refused: expected one sealed share of its seeds for each client")
        add_part(self._total, self._union, plan, vector)
        self._seeds[client] = shares, dict(zip(parts, digests, strict=True))

    def unmask(self, revealed: Mapping[int, Sequence[bytes]]) -> None:
        """Remove the masks from the sum, except from classifier rows.

        ``revealed`` has the shares from ``ClientRound.reveal``, by client. Entries stay masked if their ring must
        stay masked (see ``open_rings``), or if too few valid shares arrived.
        """
        roster, survivors = self.roster, self.survivors
        rings = open_rings(roster, tuple(self.members), tuple(survivors))
        every = {part for parts in self._parts for part in parts}
        parts = {part for part in every if roster.ring_of(part) in rings and not roster.is_rows(part)}
        by_client = {
            client: [KEY_PART] if client not in self._seeds else self._of(client, parts) for client in self.members
        }
        shares = self._collect(revealed, by_client)
        # Adding the masks of a lost client cancels the masks that the survivors share with this client.
        for client in [client for client in self.members if client not in self._seeds]:
            plan, private = roster.slice_of(client), self._secret(client, KEY_PART, shares)
            if private is None:
                add_part(self._spoiled, self._union, plan, np.ones(plan.parameters, np.int32))
                continue
            masks = np.zeros(plan.parameters, np.uint32)
            add_pairs(masks, roster, roster.view(self.members), client, private, set(survivors))
            add_part(self._total, self._union, plan, masks)
        self._take_off(parts, shares)

    def row_numbers(self) -> dict[Part, int]:
        """Return the parts of the classifier rows that may be unmasked, each with the smallest row count in the part.

        The row count of a row is the number of clients that trained it. Rows that no client trained are ignored. A part
        is left out, and stays masked, if any of its row counts is below ``roster.least``, is still masked, or is
        impossible: negative, or above the number of survivors that hold the row.
        """
        numbers: defaultdict[Part, list[int]] = defaultdict(list)
        for name in self._row_names:
            counts, rings = self._counts(name), self._holders(name, self.members)
            groups = torch.tensor([self.roster.group_of(row) for row in range(len(counts))])
            parts = rings * (self.roster.row_groups + 1) + groups.view(-1, *[1] * (counts.dim() - 1))
            for part, number in zip(parts[counts != 0].tolist(), counts[counts != 0].tolist(), strict=True):
                numbers[part].append(number)
        return {part: min(row) for part, row in sorted(numbers.items()) if min(row) >= self.roster.least}

    def unmask_rows(self, numbers: Mapping[Part, int], revealed: Mapping[int, Sequence[bytes]]) -> None:
        """Remove the masks from the parts of the classifier rows in ``numbers``, the result of ``row_numbers``.

        ``revealed`` has the shares from ``ClientRound.reveal_rows``, by client.
        """
        shares = self._collect(revealed, {client: self._of(client, set(numbers)) for client in self.survivors})
        self._take_off(set(numbers), shares)

    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return two tensors for each parameter: the sum of the clients' changes, and the number of clients by entry.

        Sums are in fixed-point steps. The number is 0 for entries whose sum is still masked. For other entries, it is
        the number of survivors that hold the entry. In classifier rows, it is the row count (see ``row_numbers``)
        instead, or -1 if the row count is masked, or impossible because a client lied.
        """
        holders = self.roster.count(self._union, self.survivors)
        holders[~self._opened] = 0
        counts = as_state(holders, self._union)
        for name in self._row_names:
            counts[name] = torch.where(counts[name] > 0, self._expand(name, self._counts(name)), 0)
        totals = as_state(self._total.view(np.int32), self._union)
        return {name: (totals[name], counts[name].float()) for name in totals if not name.startswith(COUNTS)}

    def closed(self) -> dict[str, Tensor]:
        """Return a boolean tensor for each parameter: True for entries that are still masked.

        Entries that no member holds, and classifier rows that no client trained, are False.
        """
        masked = ~self._opened & (self.roster.count(self._union, self.members) > 0)
        closed = {name: tensor for name, tensor in as_state(masked, self._union).items() if not name.startswith(COUNTS)}
        for name in self._row_names:
            closed[name] &= self._expand(name, self._counts(name)) != 0
        return closed

    @property
    def impossible(self) -> list[str]:
        """Names of parameters with an impossible row count (see ``row_numbers``), because some client lied."""
        opened = as_state(self._opened, self._union)
        return [name for name in self._row_names if (opened[COUNTS + name] & (self._counts(name) < 0)).any()]

    @property
    def _row_names(self) -> list[str]:
        return [name for name in self.roster.rows if name in self._union.axes]

    def _counts(self, name: str) -> Tensor:
        """Return how many clients trained each classifier row; -1 if this number is masked or impossible."""
        vectors = self._total.view(np.int32), self._opened
        numbers, opened = (as_state(vector, self._union)[COUNTS + name] for vector in vectors)
        holders = self._holders(name, self.survivors)
        return torch.where(opened & (numbers >= 0) & (numbers <= holders), numbers, -1)

    def _holders(self, name: str, clients: Sequence[int]) -> Tensor:
        plan = Plan({COUNTS + name: self._union.axes[COUNTS + name]})
        return as_state(self.roster.count(plan, clients), plan)[COUNTS + name]

    def _expand(self, name: str, counts: Tensor) -> Tensor:
        for axis, classes in enumerate(classes_of(self.roster.slices, name)[1:], 1):
            counts = counts.index_select(axis, torch.from_numpy(classes))
        return counts

    def _of(self, client: int, parts: set[Part]) -> list[Part]:
        return [part for part in self._parts[self.roster.clients[client][0]] if part in parts]

    def _take_off(self, parts: set[Part], shares: Shares) -> None:
        roster = self.roster
        for number, clients in roster.by_slice(self.survivors).items():
            plan = roster.slices[number]
            masks, spoiled = np.zeros(plan.parameters, np.uint32), np.zeros(plan.parameters, np.int32)
            places = places_of(roster.parts(plan, roster.count(plan, self.members)), roster)
            for part in parts.intersection(places):
                seeds = [self._secret(client, part, shares) for client in clients]
                add_private(masks, places[part], [seed for seed in seeds if seed is not None], -1)
                spoiled[places[part]] += None in seeds
            add_part(self._total, self._union, plan, masks)
            if spoiled.any():
                add_part(self._spoiled, self._union, plan, spoiled)
        opened = self.roster.parts(self._union, self.roster.count(self._union, self.members))
        self._opened = (self._opened | np.isin(opened, list(parts))) & (self._spoiled == 0)

    def _collect(self, revealed: Mapping[int, Sequence[bytes]], expected: Mapping[int, Sequence[Part]]) -> Shares:
        """Return the valid shares in ``revealed``, and add to ``liars`` the clients that lied."""
        shares: defaultdict[tuple[int, Part], dict[int, bytes]] = defaultdict(dict)
        for helper, texts in revealed.items():
            complete = texts if len(texts) == len(expected) else [b""] * len(expected)
            for (client, parts), text in zip(expected.items(), complete, strict=True):
                for part, share in self._true_shares(helper, client, parts, text).items():
                    shares[client, part][helper] = share
        self._weigh_accusations()
        return shares

    def _true_shares(self, helper: int, client: int, parts: Sequence[Part], text: bytes) -> Mapping[Part, bytes]:
        """Return the shares of a client's secrets that ``helper`` revealed; {} if ``text`` is empty or invalid.

        If ``text`` is empty, record that ``helper`` accuses ``client``. If it is invalid, add ``helper`` to ``liars``.
        """
        if parts and not text:
            self._accusers[client].add(helper)
            return {}
        hashes = dict(zip(parts, self._hashes(client, helper, parts), strict=True))
        shares = dict(zip(parts, crypto.cut(text), strict=False))
        has_length = len(text) == len(parts) * crypto.SHARE_BYTES
        if has_length and all(crypto.hash_shares([share]) == hashes[part] for part, share in shares.items()):
            return shares
        self.liars.setdefault(helper, "it revealed false shares")
        return {}

    def _weigh_accusations(self) -> None:
        """Add clients to ``liars`` because of accusations.

        A client that reveals no shares of another client's secrets accuses the other client. First add each client that
        accuses more than ``roster.tolerated`` clients. Then add each client that more than ``roster.tolerated`` clients
        outside ``liars`` accuse.
        """
        accused = Counter(helper for helpers in self._accusers.values() for helper in helpers)
        for helper, number in accused.items():
            if number > self.roster.tolerated:
                self.liars.setdefault(helper, "it revealed no shares of others' secrets")
        for client, helpers in self._accusers.items():
            if len(helpers.difference(self.liars)) > self.roster.tolerated:
                self.liars.setdefault(client, "it dealt shares that do not fit their hashes")

    def _hashes(self, client: int, helper: int, parts: Sequence[Part]) -> list[bytes]:
        if KEY_PART in parts:
            return [self._keys[client].hashes[helper]]
        (dealt, _), all_parts = self._seeds[client], self._parts[self.roster.clients[client][0]]
        hashes = crypto.cut(dealt.hashes[self.members.index(helper)], crypto.HASH_BYTES)
        return [digest for part, digest in zip(all_parts, hashes, strict=True) if part in set(parts)]

    def _secret(self, client: int, part: Part, shares: Shares) -> bytes | None:
        """Restore a client's seed or private key from valid shares; return None if there are too few.

        If the secret is not the one that the client announced, add the client to ``liars``. In this case, return a seed
        only if its shares are consistent (``crypto.are_consistent``), and return None for a private key.
        """
        dealt_shares, threshold = shares.get((client, part), {}), self.roster.threshold
        if len(dealt_shares) < threshold:
            return None
        secret, is_key = crypto.combine_shares(dealt_shares, threshold), part == KEY_PART
        announced = self.roster.public(client, 1) if is_key else self._seeds[client][1][part]
        if secret and (crypto.public_of if is_key else crypto.digest)(secret) == announced:
            return secret
        self.liars.setdefault(client, "the secret of its shares is not the one that it announced")
        return secret if secret and not is_key and crypto.are_consistent(dealt_shares, threshold) else None


def fits(dealt: Dealt, receivers: int, secrets: int) -> bool:
    """Whether the lists and byte strings in ``dealt`` have the lengths for these numbers of receivers and secrets."""
    sealed = [secrets * crypto.SHARE_BYTES + crypto.TAG_BYTES] * receivers
    hashes = [secrets * crypto.HASH_BYTES] * receivers
    return list(map(len, dealt.sealed)) == sealed and list(map(len, dealt.hashes)) == hashes
