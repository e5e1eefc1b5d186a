"""The client half of SecureSum, and the config keys of its messages."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, ReplyError
from heterofl_flwr.core.clipping import in_steps
from heterofl_flwr.core.label_rows import LabelRows, Labels
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.secure.client import ClientRound, Dealt, MaskedRounds, make_keys
from heterofl_flwr.secure.crypto import Words
from heterofl_flwr.secure.fixed_point import check_finite, to_steps
from heterofl_flwr.secure.overlaps import COUNTS, whole
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.stages.client_stage import ClientContext, Fields, Outgoing, RespondingStage, client_stage

logger = logging.getLogger(__name__)

KEY = "secure-sum"
"""Config key of the phase: ``keys``, ``shares``, ``train``, ``reveal`` or ``rows``; also the key of a client's secrets
in ``round_state``.
"""

ROSTER, CLIENTS, KEYS, SEEDS = (f"secure-{name}" for name in ("roster", "clients", "keys", "seeds"))
"""Config keys: the roster; indices of clients in the roster; public keys or shares; encrypted shares of seeds."""

HASHES, DIGESTS, RUN, LAST = (f"secure-{name}" for name in ("hashes", "digests", "run", "last-round"))
"""Config keys: hashes of shares; hashes of seeds; random run id; last round in which the client masked a change."""

PARTS, NUMBERS = "secure-parts", "secure-numbers"
"""Config keys: parts of the classifier rows to unmask; each part's smallest row count (``ServerRound.row_numbers``)."""

NONCE = "secure-start"
"""Config key: random number, new at each start or resume of a run, from which clients derive their random seeds."""

NODE_HOLDERS = "secure-holders"
"""Key of the node config: the node's minimum number of clients in a sum. A server cannot set it."""

DEFAULT_HOLDERS = 3

FORM = "masked"
"""Value of ``form`` for a masked change, which is a single uint32 vector."""


@client_stage("secure-sum")
@dataclass(frozen=True)
class ClientSecureSum(RespondingStage):
    """Mask the client's change, and answer the server's questions about keys and shares."""

    def answer(self, context: ClientContext) -> Fields:
        """Return public keys or shares, as the phase in ``context.config`` asks.

        A client masks only one change in each round. So if the server asks for keys, and this client has already masked
        a change in this round or in a later one (before the run was resumed), return no keys, but the number of the
        last round in which the client masked a change.
        """
        notes, phase = context.round_state, context.config.get(KEY)
        if phase == "keys":
            run, server_round = context.config.get(RUN), context.config.get("server-round")
            if type(run) is not int or type(server_round) is not int:
                raise ReplyError(f"the server sent no {RUN} and server-round: install the same version on all machines")
            if server_round <= (masked_round := _rounds(context).last(run)):
                return {LAST: masked_round}
            keys, notes[KEY] = make_keys()
            return {KEYS: keys}
        if phase == "shares":
            minimum = context.node_config.get(NODE_HOLDERS, DEFAULT_HOLDERS)
            if type(minimum) is not int or minimum < 2:
                raise ConfigError(f"{NODE_HOLDERS} of the node config is {minimum!r}; expected an integer of 2 or more")
            shares, notes[KEY] = _client(notes, Roster.from_bytes(context.config.get(ROSTER))).share_keys(minimum)
            return {KEYS: shares.sealed, HASHES: shares.hashes}
        if phase == "reveal":
            survivors = list_of(int, context.config, CLIENTS)
            texts, notes[KEY] = _client(notes).reveal(survivors, dealt_of(context.config, SEEDS))
            return {KEYS: texts}
        if phase == "rows":
            parts, numbers = list_of(int, context.config, PARTS), list_of(int, context.config, NUMBERS)
            texts = _client(notes).reveal_rows(dict(zip(parts, numbers, strict=False)))
            del notes[KEY]  # the client gives no more shares in this round
            return {KEYS: texts}
        raise ReplyError(f"the server asked for {shown(phase)}, expected keys, shares, reveal or rows")

    def on_update(self, update: Outgoing, context: ClientContext) -> Outgoing:
        """Return the masked change, without the client's classes, number of examples and metrics."""
        if not update.num_examples:
            raise ConfigError(
                "SecureSum counts every masked change once, so a client with num_examples=0 leaves the round; expected "
                "num_examples of 1 or more"
            )

        def fill(roster: Roster, plan: Plan, clients: int) -> Words:
            received, trained = context.received(), update.tensors
            changes = {name: tensor.double() - received[name] for name, tensor in trained.items() if name in plan.axes}
            check_finite(changes)
            if roster.grid:
                return vector_of(roster, plan, in_steps(changes, *roster.grid), update.labels)
            generator = torch.Generator().manual_seed(derive(context.seed, KEY))
            if cut := sum(int((change.abs() > roster.bound).sum()) for change in changes.values()):
                logger.warning(
                    "round %s: SecureSum cut the changes of %d of %d entries of this client to bound=%g: raise bound, "
                    "or train with a lower learning rate or in fewer steps",
                    *(context.config.get("server-round"), cut, sum(map(torch.numel, changes.values())), roster.bound),
                )
            steps = to_steps(changes, roster.bound, clients, generator)
            return vector_of(roster, plan, steps, update.labels)

        notes = context.round_state
        members, keys = list_of(int, context.config, CLIENTS), dealt_of(context.config, KEYS)
        (vector, seeds, digests), notes[KEY] = _client(notes).mask(members, keys, fill, _rounds(context))
        fields = {**update.fields, SEEDS: seeds.sealed, HASHES: seeds.hashes, DIGESTS: digests}
        return Outgoing(tensors={FORM: torch.from_numpy(vector)}, form=FORM, fields=fields)


def vector_of(roster: Roster, plan: Plan, steps: Mapping[str, Tensor], labels: Labels | None) -> Words:
    """Return a client's change as one vector of fixed-point steps, in the order of ``plan``.

    Classifier rows of classes that the client lacks are 0. ``plan`` also has parameters whose names begin with
    ``COUNTS``. Their entries are 1 in the rows that the client trained, else 0, so that their sum over clients is the
    number of clients that trained the row.
    """
    axes = whole(roster.slices).axes
    state = {name: torch.empty(axes[name][0].size) for name in roster.rows if name in axes}
    rows = LabelRows(state, list(state), extra_rows=roster.extra_rows)
    trained_rows = rows.by_name(plan, labels if roster.by_label else None)
    parts = []
    for name, shape in plan.shapes.items():
        entries = torch.ones(shape) if name.startswith(COUNTS) else steps[name]
        if entries.shape != shape:
            raise ReplyError(f"the server sent a roster in which {name} is {shape}, expected {tuple(entries.shape)}")
        if (index := trained_rows.get(name.removeprefix(COUNTS))) is not None:
            entries = entries * torch.isin(torch.arange(shape[0]), index).view(-1, *[1] * (len(shape) - 1))
        parts.append(entries.reshape(-1).to(torch.int32))
    return torch.cat(parts).numpy().view(np.uint32)


def _client(notes: Mapping[str, bytes], roster: Roster | None = None) -> ClientRound:
    if KEY not in notes:
        raise ReplyError("this node has no keys of this round: it was restarted meanwhile, or has revealed its shares")
    return ClientRound(notes[KEY], roster)


def _rounds(context: ClientContext) -> MaskedRounds:
    return MaskedRounds(context.round_state, context.records)


def dealt_of(fields: Fields, key: str) -> Dealt:
    """Return the encrypted shares under ``key`` of a message, with their hashes."""
    return Dealt(list_of(bytes, fields, key), list_of(bytes, fields, HASHES))


def list_of(kind: type, fields: Fields, key: str) -> list[Any]:
    """Return the list under ``key`` of a message.

    Return [] if the value is missing or not a list, or if an item is not of the type ``kind``.
    """
    value = fields.get(key)
    return value if isinstance(value, list) and all(type(item) is kind for item in value) else []
