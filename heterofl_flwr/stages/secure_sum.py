"""SecureSum: the server learns the sum of what clients changed, and no single change (secure aggregation).

Where slices are of unequal size, clients mask each entry together with those who hold it too, so that nobody sends more
than its slice. ``heterofl_flwr/secure`` has the protocol, docs/explain/secure-aggregation.md who is trusted with what.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from reprlib import repr as shown

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heterofl_flwr.core.counting_mean import Aggregator
from heterofl_flwr.core.differential_privacy import in_steps
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.core.reply_checks import LabelRows
from heterofl_flwr.errors import ConfigError, ReplyError, RoundError
from heterofl_flwr.secure.client import ClientRound, Secrets, make_keys
from heterofl_flwr.secure.fixed_point import LARGEST_SUM, largest_steps, to_steps
from heterofl_flwr.secure.keys import Words
from heterofl_flwr.secure.roster import Roster, compact
from heterofl_flwr.secure.server import ServerRound
from heterofl_flwr.secure.slices import COUNTS, Counts, Slice
from heterofl_flwr.stages.stage import (
    ClientContext,
    Needs,
    Outgoing,
    RoundContext,
    Said,
    Stage,
    Talk,
    Update,
)

KEY = "secure-sum"
"""What messages call what a client is to do: ``keys``, ``shares``, ``train`` or ``reveal``.

By this name it also keeps its secrets during a round.
"""

ROSTER, CLIENTS, KEYS, SEEDS, HASHES = (f"secure-{name}" for name in ("roster", "clients", "keys", "seeds", "hashes"))
"""What goes with it: the roster; clients by number; public keys, or shares of private ones; shares, hashes of seeds."""

FORM = "masked"
"""The form of a masked change: one vector, in uint32."""


class SecureSum(Stage):
    """Let the server add up masked changes, and unmask their sum alone.

    Parameters
    ----------
    bound
        By how much a client may change an entry in a round; more is cut off. The step of the fixed-point numbers is
        this over 2^31, times the number of clients.
    holders
        What fewer clients hold, at the beginning or at the end of a round, is not unmasked, and keeps still.
    """

    name = "SecureSum"
    needs = Needs(counting_mean=True, equal_weights=True)

    def __init__(self, bound: float = 4.0, holders: float = 3) -> None:
        if not 0 < bound < math.inf:
            raise ConfigError(f"SecureSum: bound is {bound!r}, expected a number over 0")
        if holders != int(holders) or holders < 2:
            raise ConfigError(f"SecureSum: holders is {holders!r}, expected a whole number from 2 up")
        self.bound, self.holders = float(bound), int(holders)
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
        keys = {client: own for client, said in answers.items() if len(own := _texts(said, KEYS)) == 2}
        roster = self._roster({client: clients[client] for client in keys}, keys, context)
        self._nodes = list(keys)
        text = roster.to_bytes()
        answers = yield {client: {KEY: "shares", ROSTER: text} for client in keys}
        shares = {self._nodes.index(client): _texts(said, KEYS) for client, said in answers.items()}
        fits = {number: own for number, own in shares.items() if len(own) == len(roster.neighbours[number])}
        shapes = {name: tuple(own.shape) for name, own in context.state.items()}
        self._round = current = ServerRound(roster, shapes, fits)
        return {
            self._nodes[number]: {CLIENTS: current.members, KEYS: current.shares_for(number)}
            for number in current.members
        }

    def _roster(
        self, clients: Mapping[int, Update], keys: Mapping[int, Sequence[bytes]], context: RoundContext
    ) -> Roster:
        if len(clients) < self.holders:
            raise RoundError(
                f"round {context.server_round}: {len(clients)} clients sent keys for SecureSum, expected at least "
                f"{self.holders} (holders): let more take part"
            )
        if context.grid and len(clients) * context.grid[0] / context.grid[1] > LARGEST_SUM:
            clip, step = context.grid
            raise RoundError(
                f"round {context.server_round}: the sum of {len(clients)} changes of up to {clip / step:.4g} steps of "
                f"the noise's grid does not fit into 32 bits; expected noise of at least "
                f"{len(clients) * clip / step / LARGEST_SUM:.3g} times what it is, or fewer clients"
            )
        plans = {client: _trained(own, context).axes for client, own in clients.items()}
        axes, slices, numbers = compact(plans)
        return Roster(
            server_round=context.server_round,
            least=self.holders,
            bound=self.bound,
            rows=list(context.rows) if context.by_label else [],
            extra_rows=context.extra_rows,
            grid=list(context.grid or ()),
            axes=axes,
            plans=slices,
            clients=[(numbers[client], own[0].hex(), own[1].hex()) for client, own in keys.items()],
        )

    def answer(self, context: ClientContext) -> Said:
        """Return keys, shares of keys, or shares of what unmasks the sum."""
        notes = _notes(context)
        if self._asked[KEY] == "keys":
            keys, secrets = make_keys()
            notes[KEY] = secrets.to_bytes()
            return {KEYS: keys}
        secrets = _read_secrets(notes)
        if self._asked[KEY] == "shares":
            shares, secrets = ClientRound(secrets, Roster.from_bytes(self._asked.get(ROSTER))).share_keys()
            notes[KEY] = secrets.to_bytes()
            return {KEYS: shares}
        if self._asked[KEY] != "reveal":
            raise ReplyError(f"the server asked for {shown(self._asked[KEY])}, expected keys, shares or reveal")
        own = ClientRound(secrets, Roster.from_bytes(secrets.roster))
        seeds, lost = own.reveal(_numbers(self._asked), _texts(self._asked, SEEDS))
        del notes[KEY]  # nobody gets more of this round
        return {SEEDS: seeds, KEYS: lost}

    def on_client(self, outgoing: Outgoing, context: ClientContext) -> Outgoing:
        """Mask the change; leave out which classes the client has, its number of examples and its metrics."""
        notes = _notes(context)
        secrets = _read_secrets(notes)
        own = ClientRound(secrets, Roster.from_bytes(secrets.roster))

        def fill(roster: Roster, held: Slice, clients: int) -> Words:
            before = context.received()
            changes = {
                name: own.double() - before[name].to(own.device)
                for name, own in outgoing.tensors.items()
                if name in held
            }
            if roster.grid:
                steps = in_steps(changes, float(roster.grid[0]), float(roster.grid[1]))
            else:
                generator = torch.Generator().manual_seed(derive(context.seed, KEY))
                steps = to_steps(changes, roster.bound, clients, generator)
            return vector_of(roster, held, steps, outgoing.labels)

        masked, secrets = own.mask(_numbers(self._asked), _texts(self._asked, KEYS), fill)
        notes[KEY] = secrets.to_bytes()
        return Outgoing(
            tensors={FORM: torch.from_numpy(masked.vector)},
            form=FORM,
            said={**outgoing.said, SEEDS: masked.shares, HASHES: masked.hashes},
        )

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Add a masked change to the sum."""
        current = self._current()
        if update.form != FORM or update.client not in self._nodes:
            raise ReplyError(
                f"reply refused: its change is in the form {update.form}, expected {FORM}: install the same version of "
                f"heterofl-flwr on the server and on every node"
            )
        vector = update.tensors[FORM].numpy()
        current.add(self._nodes.index(update.client), vector, _texts(update.said, SEEDS), _texts(update.said, HASHES))
        return replace(update, plan=Plan({}), tensors={}, labels=None)

    def after(self, context: RoundContext) -> Talk[None]:
        """Collect shares of the seeds of those who are in the sum, and of the keys of those who are not; unmask."""
        current = self._current()
        if not current.survivors:  # the round fails for want of replies
            return
        answers = yield {
            self._nodes[number]: {KEY: "reveal", CLIENTS: current.survivors, SEEDS: current.seeds_for(number)}
            for number in current.survivors
        }
        revealed = {
            self._nodes.index(client): (_texts(said, SEEDS), _texts(said, KEYS)) for client, said in answers.items()
        }
        current.unmask(revealed)

    def mean(self, state: Mapping[str, Tensor], rows: Iterable[str]) -> Aggregator:
        """Return the mean of the sum."""
        return MeanOfSum(state, self._current)

    def facts(self) -> Mapping[str, float]:
        """Return how many clients' changes are in the sum."""
        return {"summed-clients": float(len(self._round.survivors))} if self._round else {}

    def _current(self) -> ServerRound:
        if self._round is None:
            raise RoundError("SecureSum has no keys of this round: nobody was asked before training")
        return self._round


class MeanOfSum(Aggregator):
    """The counting mean of a sum that was unmasked: replies themselves are no part of it."""

    def __init__(self, state: Mapping[str, Tensor], current: Callable[[], ServerRound]) -> None:
        super().__init__(state)
        self._current = current

    def add(
        self, plan: Plan, sub: Mapping[str, Tensor], *, labels: Sequence[int] | None = None, weight: float = 1.0
    ) -> None:
        """Count a reply, which is in the sum already."""
        self.replies += 1

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Return the state, moved by the mean change; in steps where changes are on a grid."""
        roster, members = self._current().roster, len(self._current().members)
        step = 1.0 if roster.grid else roster.bound / largest_steps(members)
        new = {}
        for name, (total, counts) in self._found.items():
            old, number = self._state[name], torch.from_numpy(counts.astype(np.float64))
            mean = torch.from_numpy(total).double() / number.clamp(min=1) * step
            new[name] = torch.where(number > 0, old.double() + mean, old.double()).to(old.dtype)
        return new

    def held(self, name: str) -> Tensor:
        """Return how many clients count in each entry."""
        return torch.from_numpy(self._found[name][1].astype(np.float64))

    @cached_property
    def _found(self) -> dict[str, tuple[NDArray[np.int32], Counts]]:
        return self._current().sums()


def vector_of(roster: Roster, held: Slice, steps: Mapping[str, Tensor], labels: Sequence[int] | None) -> Words:
    """Return a client's change as a vector: 0 in rows of classes that it lacks; then which rows count, as 0 and 1."""
    rows, parts = _counted_rows(roster, held, labels), []
    for name, axes in held.items():
        shape = tuple(map(len, axes))
        if name.startswith(COUNTS):
            own = np.broadcast_to(_by_row(rows[name.removeprefix(COUNTS)], shape), shape)
        else:
            own = steps[name].numpy()
            if own.shape != shape:
                raise ReplyError(f"the server sent a roster in which {name} is {shape}, expected {own.shape}")
            own = own * _by_row(rows[name], shape) if name in rows else own
        parts.append(own.astype(np.int32).reshape(-1))
    return np.concatenate(parts).view(np.uint32)


def _counted_rows(roster: Roster, held: Slice, labels: Sequence[int] | None) -> dict[str, NDArray[np.bool_]]:
    """Return which rows of parameters whose rows belong to classes count for a client."""
    sizes = {name: len(held[name][0]) for name in roster.rows if name in held}
    counted = {name: np.ones(size, bool) for name, size in sizes.items()}
    if labels is not None and sizes:
        like = {name: torch.empty(size, 0) for name, size in sizes.items()}
        known = LabelRows(like, list(sizes), classes=None, extra_rows=roster.extra_rows).held(Plan({}), labels)
        for name, size in sizes.items():
            counted[name] = np.isin(np.arange(size), [] if known is None else known.tolist())
    return counted


def _by_row(counted: NDArray[np.bool_], shape: Sequence[int]) -> NDArray[np.bool_]:
    return counted.reshape(-1, *[1] * (len(shape) - 1))


def _trained(update: Update, context: RoundContext) -> Plan:
    """Return the part of a client's slice that it trains."""
    untrained = context.untrained(update.rate)
    return Plan({name: axes for name, axes in update.plan.axes.items() if name not in untrained})


def _notes(context: ClientContext) -> dict[str, bytes]:
    if context.notes is None:
        raise ConfigError(
            "SecureSum keeps keys between the messages of a round: call answer_queries(app, ...) in the ClientApp, or "
            "reply(..., context=context)"
        )
    return context.notes


def _read_secrets(notes: Mapping[str, bytes]) -> Secrets:
    if KEY not in notes:
        raise ReplyError("this node has no keys of this round: it was restarted meanwhile, or has revealed its shares")
    return Secrets(**json.loads(notes[KEY]))


def _texts(said: Said, key: str) -> list[bytes]:
    """Return a list of bytes; none if there is something else."""
    found = said.get(key)
    return found if isinstance(found, list) and all(isinstance(own, bytes) for own in found) else []


def _numbers(said: Said) -> list[int]:
    """Return the numbers of clients that the server names."""
    found = said.get(CLIENTS)
    if not isinstance(found, list) or not all(type(own) is int for own in found):
        raise ReplyError(f"the server sent {shown(found)} as {CLIENTS}, expected a list of whole numbers")
    return found
