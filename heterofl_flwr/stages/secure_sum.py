"""SecureSum: the server learns the sum of the clients' changes, but no single change.

Each entry is masked only among the clients whose slices contain it. docs/howto/privacy.md explains who must be trusted.
"""

import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError, RoundError, counted
from heterofl_flwr.common.options import Positive, with_options
from heterofl_flwr.core.aggregator import CheckedReply
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.secure.client import Masked
from heterofl_flwr.secure.crypto import are_usable
from heterofl_flwr.secure.fixed_point import LARGEST_SUM, largest_steps
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.server import ServerRound, fits
from heterofl_flwr.stages.client_stage import Fields, RespondingStage, State
from heterofl_flwr.stages.conversation import Conversation, Questions
from heterofl_flwr.stages.level_parameters import trained_plan
from heterofl_flwr.stages.secure_sum_client import (
    CLIENTS,
    DIGESTS,
    FORM,
    HASHES,
    KEY,
    KEYS,
    LAST,
    NONCE,
    NUMBERS,
    PARTS,
    ROSTER,
    RUN,
    SEEDS,
    ClientSecureSum,
    dealt_of,
    list_of,
)
from heterofl_flwr.stages.server_stage import Needs, RoundContext, Update

logger = logging.getLogger(__name__)


@with_options
class SecureSum(Conversation):
    """Server stage that sums masked changes and unmasks only the sum."""

    bound: Positive = 4.0
    """upper bound on one client's change of an entry in a round; larger changes are clipped. A step of the fixed-point
    numbers is this bound times the number of clients, divided by 2^31. Not used with privacy noise
    """
    holders: Annotated[int, Field(ge=2)] = 3
    """minimum number of clients that hold an entry, at the start and at the end of a round; entries with fewer clients
    are not unmasked and keep their value
    """

    def __post_init__(self) -> None:
        self.needs = Needs(counting_mean=True, equal_weights=True, holders=self.holders)
        self.excluded: dict[int, str] = {}
        self._nodes: Sequence[int] = ()
        self._round: ServerRound | None = None
        self._nonce = secrets.randbits(63)
        self._liars: dict[int, str] = {}  # reasons by client, for the rest of the run
        self._closed: float | None = None  # fraction of the model that was not unmasked

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Begin or resume a run. Clients that were left out for false answers may take part again."""
        self._nonce, self._liars = secrets.randbits(63), {}

    def client(self) -> RespondingStage:
        """Return the client half of this stage."""
        return ClientSecureSum()

    def before(self, clients: Mapping[int, Update], context: RoundContext) -> Questions[Mapping[int, Fields]]:
        """Query clients for public keys, then for shares of private keys; return config entries for training."""
        self._round, self._closed, self.skipped, self.fewest_replies = None, None, False, 0
        self.excluded = {client: f"left out: {self._liars[client]}" for client in clients if client in self._liars}
        answers = yield {client: {KEY: "keys", RUN: context.run} for client in clients if client not in self._liars}
        keys: dict[int, list[bytes]] = {}
        for client, answer in answers.items():
            if type(masked_round := answer.get(LAST)) is int:
                self.excluded[client] = f"left out: it has masked a change in round {masked_round} of this run"
            pair, other_keys = list_of(bytes, answer, KEYS), {key for pair in keys.values() for key in pair}
            if are_usable(pair) and not other_keys.intersection(pair):
                keys[client] = pair
        self._nodes = list(keys)
        if self.excluded and len(keys) < self.holders:
            self._skip(f"{counted(len(keys), 'client')} may take part", context)
            return {}
        roster = self._roster([clients[client] for client in keys], list(keys.values()), context)
        self.fewest_replies = roster.threshold
        answers = yield {client: {KEY: "shares", ROSTER: roster.to_bytes()} for client in keys}
        dealt = {self._nodes.index(client): dealt_of(answer, KEYS) for client, answer in answers.items()}
        usable = {number: shares for number, shares in dealt.items() if fits(shares, len(keys), 1)}
        self._round = current = ServerRound(roster, usable)
        self.config_bytes = current.config_bytes
        fields: dict[int, Fields] = {}
        for member in current.members:
            shares = current.keys_for(member)
            clients_and_keys = {CLIENTS: current.members, KEYS: shares.sealed, HASHES: shares.hashes}
            fields[self._nodes[member]] = {KEY: "train", NONCE: self._nonce, **clients_and_keys}
        return fields

    def _skip(self, cause: str, context: RoundContext) -> None:
        self.skipped, self._closed = True, 1.0
        logger.warning(
            "round %d: SecureSum opens no sum, and the model stays as it is: %s", context.server_round, cause
        )

    def _roster(self, clients: Sequence[Update], keys: Sequence[Sequence[bytes]], context: RoundContext) -> Roster:
        if len(clients) < self.holders:
            raise RoundError(
                f"round {context.server_round}: {counted(len(clients), 'client')} sent keys for SecureSum, expected at "
                f"least {self.holders} (holders): let more take part"
            )
        factor = len(clients) * context.grid[0] / context.grid[1] / LARGEST_SUM if context.grid else 0
        if factor > 1:
            raise RoundError(
                f"round {context.server_round}: the sum of the changes of {len(clients)} clients does not fit into 32 "
                f"bits on the grid of the noise; expected {math.ceil(100 * factor) / 100:g} times the noise, or fewer "
                f"clients"
            )
        return Roster.of(
            [trained_plan(client, context) for client in clients],
            keys,
            run=context.run,
            server_round=context.server_round,
            least=self.holders,
            bound=self.bound,
            by_label=context.by_label,
            rows=list(context.rows) if context.by_label else [],
            extra_rows=context.extra_rows,
            grid=list(context.grid or ()),
        )

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Add a client's masked change to the sum; return the update without tensors."""
        if self._round is None or update.form != FORM or update.client not in self._nodes:
            raise ReplyError(
                f"reply refused: its change is in the form {update.form}, expected {FORM}: install the same version of "
                f"heterofl-flwr on the server and on every node"
            )
        vector, client = update.tensors[FORM].numpy(), self._nodes.index(update.client)
        digests = list_of(bytes, update.fields, DIGESTS)
        self._round.add(client, Masked(vector, dealt_of(update.fields, SEEDS), digests))
        return replace(update, plan=Plan({}), tensors={}, labels=None)

    def after(self, context: RoundContext) -> Questions[None]:
        """Query clients for shares, and use these to unmask the sum.

        The first query is for all entries except classifier rows, the second for these rows.
        """
        current = self._round
        if current is None or not current.survivors:  # the round is skipped, or fails because it has no replies
            return
        if not current.can_open:
            self._skip(f"{len(current.survivors)} of {counted(len(current.roster.clients), 'client')} left", context)
            return
        questions: dict[int, Fields] = {}
        for member in current.survivors:
            seeds = current.seeds_for(member)
            fields = {KEY: "reveal", CLIENTS: current.survivors, SEEDS: seeds.sealed, HASHES: seeds.hashes}
            questions[self._nodes[member]] = fields
        answers = yield questions
        current.unmask({self._nodes.index(client): list_of(bytes, answer, KEYS) for client, answer in answers.items()})
        numbers = current.row_numbers()
        rows = {KEY: "rows", PARTS: list(numbers), NUMBERS: list(numbers.values())}
        answers = yield dict.fromkeys(answers, rows) if current.roster.rows else {}
        if numbers:
            texts = {self._nodes.index(client): list_of(bytes, answer, KEYS) for client, answer in answers.items()}
            current.unmask_rows(numbers, texts)
        self._name_liars(current, context)
        self._use(current, context)

    def _name_liars(self, current: ServerRound, context: RoundContext) -> None:
        for number, reason in current.liars.items():
            client = self._nodes[number]
            self.excluded[client] = f"{reason}; it is left out of later rounds"
            self._liars[client] = f"in round {context.server_round} {reason}"
        for name in current.impossible:
            logger.warning(
                "round %d: rows of %s stay as they are: the number of clients with one of these rows is impossible, "
                "so a client sent a false number; nobody can see which client",
                context.server_round,
                name,
            )

    def _use(self, current: ServerRound, context: RoundContext) -> None:
        sums, closed = current.sums(), current.closed()
        if not any((count > 0).any() for _, count in sums.values()):
            self._skip("too few shares came, or too few clients hold each entry", context)
            return
        step = 1.0 if current.roster.grid else self.bound / largest_steps(len(current.members))
        if context.norm_bound:
            means = (total.double() / count.double().clamp(min=1) * (count > 0) for total, count in sums.values())
            length = math.hypot(*(mean.norm().item() * step for mean in means))
            if not length <= context.norm_bound:
                cause = f"the mean change has an L2 norm of {length:.4g}, expected up to {context.norm_bound:g}"
                self._skip(f"{cause} (norm_bound); one of the clients sent a false change", context)
                return
        entries = sum(mask.numel() for mask in closed.values())
        self._closed = sum(int(mask.sum()) for mask in closed.values()) / max(1, entries)
        self._mean.sums, self._mean.step = sums, step

    def open_aggregator(self, state: Mapping[str, Tensor]) -> "MeanOfSum":
        """Return the aggregator that computes the mean from the unmasked sum."""
        self._mean = MeanOfSum(state)
        return self._mean

    def metrics(self) -> Mapping[str, float]:
        """Return the number of clients in the sum, and the fraction of the model that was not unmasked."""
        facts = {} if self._closed is None else {"closed-fraction": self._closed}
        summed = 0 if self.skipped or self._round is None else len(self._round.survivors)
        return {"summed-clients": float(summed), **facts}


class MeanOfSum:
    """Aggregator that computes the mean from an unmasked sum.

    Attributes
    ----------
    sums
        By parameter, the sum of the clients' changes in fixed-point steps, and the number of clients in the sum of each
        entry. An entry without a usable sum has the number 0 or -1.
    step
        Number by which the mean of the sums is multiplied: the size of a fixed-point step, or 1 with privacy noise,
        because the stage ``Noise`` multiplies by the size later.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self.sums: Mapping[str, tuple[Tensor, Tensor]] = {}
        self.step = 1.0

    def add(self, reply: CheckedReply) -> None:
        """Ignore the reply, which is already part of the sum."""

    @torch.no_grad()
    def result(self) -> State:
        """Return the old model plus the mean change; entries without a usable sum keep their values."""
        new = State()
        for name, old in self._state.items():
            total, counts = self.sums.get(name, (torch.zeros(()), torch.zeros(())))
            moved = old.double() + total.double() / counts.double().clamp(min=1) * self.step
            new[name] = torch.where(counts > 0, moved, old.double()).to(old.dtype)
        return new

    def holders(self, name: str) -> Tensor:
        """Return, for each entry of a parameter, the number of clients in its sum."""
        return self.sums[name][1] if name in self.sums else torch.zeros(self._state[name].shape)
