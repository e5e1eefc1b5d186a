"""SecureSum: the server learns the sum of what clients changed, and no single change (secure aggregation).

Where slices are of unequal size, clients mask each entry together with those who hold it too, so that nobody sends more
than its slice. ``heterofl_flwr/secure`` has the protocol, docs/howto/privacy.md who is trusted with what.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from reprlib import repr as shown
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, ReplyError, RoundError
from heterofl_flwr.common.options import Positive, with_options
from heterofl_flwr.core.aggregator import CheckedReply
from heterofl_flwr.core.differential_privacy import in_steps
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.core.reply_checks import LabelRows
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.secure.client import ClientRound, make_keys
from heterofl_flwr.secure.crypto import Words, are_usable
from heterofl_flwr.secure.fixed_point import LARGEST_SUM, largest_steps, to_steps
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.server import ServerRound
from heterofl_flwr.secure.slices import COUNTS
from heterofl_flwr.stages.stage import ClientContext, Needs, Outgoing, RoundContext, Said, Stage, State, Talk, Update
from heterofl_flwr.stages.untrained import trained_plan

KEY = "secure-sum"
"""What messages call what a client is to do: ``keys``, ``shares``, ``train`` or ``reveal``.

By this name it also keeps its secrets during a round.
"""

ROSTER, CLIENTS, KEYS, SEEDS, HASHES = (f"secure-{name}" for name in ("roster", "clients", "keys", "seeds", "hashes"))
"""What goes with it: the roster; clients by number; public keys, or shares of private ones; shares, hashes of seeds."""

FORM = "masked"
"""The form of a masked change: one vector, in uint32."""


@with_options
class SecureSum(Stage):
    """Let the server add up masked changes, and unmask their sum alone."""

    name = "SecureSum"
    bound: Positive = 4.0
    """by how much a client may change an entry in a round; more is cut off. The step of the fixed-point numbers is this
    over 2^31, times the number of clients.
    """
    holders: Annotated[int, Field(ge=2)] = 3
    """what fewer clients hold, at the beginning or at the end of a round, is not unmasked, and keeps still"""

    def __post_init__(self) -> None:
        self.needs = Needs(counting_mean=True, equal_weights=True, holders=self.holders)
        self._asked: Said = {}
        self._nodes: Sequence[int] = ()
        self._round: ServerRound | None = None

    def instruction(self) -> Mapping[str, float | str]:
        """Tell clients that what they send is to be masked."""
        return {KEY: "train"}

    @classmethod
    def from_instruction(cls, config: Mapping[str, object]) -> Stage | None:
        """Return the stage with what an instruction or a question says."""
        if KEY not in config:
            return None
        own = cls()
        own._asked = dict(config)
        return own

    def before(self, clients: Mapping[int, Update], context: RoundContext) -> Talk[Mapping[int, Said]]:
        """Collect fresh keys, send the roster and collect shares of the keys; return what each member is told."""
        self._round = None
        answers = yield {client: {KEY: "keys"} for client in clients}
        keys: dict[int, list[bytes]] = {}
        for client, said in answers.items():
            own, known = _list_of(bytes, said, KEYS), {key for pair in keys.values() for key in pair}
            if are_usable(own) and not known.intersection(own):
                keys[client] = own
        self._nodes = list(keys)
        roster = self._roster([clients[client] for client in keys], list(keys.values()), context)
        text = roster.to_bytes()
        answers = yield {client: {KEY: "shares", ROSTER: text} for client in keys}
        shares = {self._nodes.index(client): _list_of(bytes, said, KEYS) for client, said in answers.items()}
        fits = {number: own for number, own in shares.items() if len(own) == len(keys)}
        self._round = current = ServerRound(roster, fits)
        return {self._nodes[one]: {CLIENTS: current.members, KEYS: current.keys_for(one)} for one in current.members}

    def _roster(self, clients: Sequence[Update], keys: Sequence[Sequence[bytes]], context: RoundContext) -> Roster:
        if len(clients) < self.holders:
            raise RoundError(
                f"round {context.server_round}: {len(clients)} clients sent keys for SecureSum, expected at least "
                f"{self.holders} (holders): let more take part"
            )
        sum_ = len(clients) * context.grid[0] / context.grid[1] if context.grid else 0
        if sum_ > LARGEST_SUM:
            raise RoundError(
                f"round {context.server_round}: the sum of the changes of {len(clients)} clients does not fit into 32 "
                f"bits on the grid of the noise; expected {sum_ / LARGEST_SUM:.3g} times the noise, or fewer clients"
            )
        return Roster.of(
            [trained_plan(own, context) for own in clients],
            keys,
            server_round=context.server_round,
            least=self.holders,
            bound=self.bound,
            rows=list(context.rows) if context.by_label else [],
            extra_rows=context.extra_rows,
            grid=list(context.grid or ()),
        )

    def answer(self, context: ClientContext) -> Said:
        """Return keys, shares of keys, or shares of what unmasks the sum."""
        notes, asked = _notes(context), self._asked[KEY]
        if asked == "keys":
            keys, notes[KEY] = make_keys()
        elif asked == "shares":
            keys, notes[KEY] = _client(notes, Roster.from_bytes(self._asked.get(ROSTER))).share_keys()
        elif asked == "reveal":
            keys = _client(notes).reveal(_list_of(int, self._asked, CLIENTS), _list_of(bytes, self._asked, SEEDS))
            del notes[KEY]  # nobody gets more of this round
        else:
            raise ReplyError(f"the server asked for {shown(asked)}, expected keys, shares or reveal")
        return {KEYS: keys}

    def on_client(self, outgoing: Outgoing, context: ClientContext) -> Outgoing:
        """Mask the change; leave out which classes the client has, its number of examples and its metrics."""

        def fill(roster: Roster, held: Plan, clients: int) -> Words:
            received, trained = context.received(), outgoing.tensors
            changes = {name: own.double() - received[name] for name, own in trained.items() if name in held.axes}
            if roster.grid:
                return vector_of(roster, held, in_steps(changes, *roster.grid), outgoing.labels)
            generator = torch.Generator().manual_seed(derive(context.seed, KEY))
            steps = to_steps(changes, roster.bound, clients, generator)
            return vector_of(roster, held, steps, outgoing.labels)

        notes = _notes(context)
        members, sealed = _list_of(int, self._asked, CLIENTS), _list_of(bytes, self._asked, KEYS)
        (vector, seeds, hashes), notes[KEY] = _client(notes).mask(members, sealed, fill)
        said = {**outgoing.said, SEEDS: seeds, HASHES: hashes}
        return Outgoing(tensors={FORM: torch.from_numpy(vector)}, form=FORM, said=said)

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Add a masked change to the sum."""
        if update.form != FORM or update.client not in self._nodes:
            raise ReplyError(
                f"reply refused: its change is in the form {update.form}, expected {FORM}: install the same version of "
                f"heterofl-flwr on the server and on every node"
            )
        vector, client = update.tensors[FORM].numpy(), self._nodes.index(update.client)
        self._current().add(client, vector, _list_of(bytes, update.said, SEEDS), _list_of(bytes, update.said, HASHES))
        return replace(update, plan=Plan({}), tensors={}, labels=None)

    def after(self, context: RoundContext) -> Talk[None]:
        """Collect shares of the seeds of those who are in the sum, and of the keys of those who are not; unmask."""
        current = self._current()
        asked = {KEY: "reveal", CLIENTS: current.survivors}
        if current.survivors:  # else the round fails for want of replies
            answers = yield {self._nodes[one]: {**asked, SEEDS: current.seeds_for(one)} for one in current.survivors}
            current.unmask({self._nodes.index(one): _list_of(bytes, said, KEYS) for one, said in answers.items()})
            step = 1.0 if current.roster.grid else self.bound / largest_steps(len(current.members))
            self._mean.set_sums(current.sums(), step)

    def open_aggregator(self, state: Mapping[str, Tensor]) -> "MeanOfSum":
        """Return the mean of the unmasked sum."""
        self._mean = MeanOfSum(state)
        return self._mean

    def facts(self) -> Mapping[str, float]:
        """Return how many clients' changes are in the sum."""
        return {"summed-clients": float(len(self._round.survivors))} if self._round else {}

    def _current(self) -> ServerRound:
        if self._round is None:
            raise RoundError("SecureSum has no keys of this round: nobody was asked before training")
        return self._round


class MeanOfSum:
    """The counting mean of an unmasked sum; single replies contribute nothing."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._sums: Mapping[str, tuple[Tensor, Tensor]] = {}
        self._step = 1.0

    def set_sums(self, sums: Mapping[str, tuple[Tensor, Tensor]], step: float) -> None:
        """Set the sum of each parameter in fixed-point steps, with its number of holders, and the size of a step."""
        self._sums, self._step = sums, step

    def add(self, reply: CheckedReply) -> None:
        """Do nothing: the reply is part of the sum."""

    @torch.no_grad()
    def result(self) -> State:
        """Return the state, moved by the mean change."""
        new = State()
        for name, old in self._state.items():
            total, counts = self._sums.get(name, (torch.zeros(()), torch.zeros(())))
            moved = old.double() + total.double() / counts.double().clamp(min=1) * self._step
            new[name] = torch.where(counts > 0, moved, old.double()).to(old.dtype)
        return new

    def held(self, name: str) -> Tensor:
        """Return the number of holders of each entry."""
        return self._sums[name][1] if name in self._sums else torch.zeros(self._state[name].shape)


def vector_of(roster: Roster, held: Plan, steps: Mapping[str, Tensor], labels: Sequence[int] | None) -> Words:
    """Return a client's change as a vector: 0 in rows of classes that it lacks; then which rows count, as 0 and 1."""
    rows = [name for name in roster.rows if name in held.axes]
    known = LabelRows(steps, rows, extra_rows=roster.extra_rows).held(Plan({}), labels if rows else None)
    parts = []
    for name, shape in held.shapes.items():
        own = torch.ones(shape) if name.startswith(COUNTS) else steps[name]
        if own.shape != shape:
            raise ReplyError(f"the server sent a roster in which {name} is {shape}, expected {tuple(own.shape)}")
        if known is not None and name.removeprefix(COUNTS) in rows:
            own = own * torch.isin(torch.arange(shape[0]), known).view(-1, *[1] * (len(shape) - 1))
        parts.append(own.reshape(-1).to(torch.int32))
    return torch.cat(parts).numpy().view(np.uint32)


def _notes(context: ClientContext) -> dict[str, bytes]:
    if context.notes is None:
        raise ConfigError(
            "SecureSum keeps keys between the messages of a round: call answer_queries(app, ...) in the ClientApp, or "
            "reply(..., context=context)"
        )
    return context.notes


def _client(notes: Mapping[str, bytes], roster: Roster | None = None) -> ClientRound:
    if KEY not in notes:
        raise ReplyError("this node has no keys of this round: it was restarted meanwhile, or has revealed its shares")
    return ClientRound(notes[KEY], roster)


def _list_of(kind: type, said: Said, key: str) -> list[Any]:
    """Return a list of bytes or whole numbers; an empty one if there is something else."""
    found = said.get(key)
    return found if isinstance(found, list) and all(type(own) is kind for own in found) else []
