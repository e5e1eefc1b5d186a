"""Compressed replies: the changes of a client's parameters in float16 or int8."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError, ShapeError, listed
from heterofl_flwr.common.named_tensors import name_misfits
from heterofl_flwr.common.options import group
from heterofl_flwr.core.check_reply import check_reply
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.stages.client_stage import FULL_PRECISION, ClientContext, ClientStage, Outgoing, client_stage
from heterofl_flwr.stages.server_stage import RoundContext, ServerStage, Update

KEY = "upload"
"""Config key of a reply: the encoding of its update, an ``Upload``."""

Upload = Literal["float32", "float16", "int8"]
"""Form of a reply: parameters in full precision, or their changes in 16 or 8 bits."""

_STEPS = 127  # int8 without -128, so that the range is symmetric


@client_stage("compress")
@group
class ClientCompress(ClientStage):
    """Encode the change of the parameters in float16 or int8."""

    upload: Upload
    """form of the update"""

    def on_update(self, update: Outgoing, context: ClientContext) -> Outgoing:
        """Return the update with compressed changes instead of parameters."""
        tensors, scales = compress(context.received(), update.tensors, self.upload, seed=context.seed)
        return replace(update, tensors=tensors, form=self.upload, scales=scales)


class Compress(ServerStage):
    """The server half: restore parameters from clients' changes in float16 or int8.

    In int8, each row of a parameter (the entries at one index of axis 0) has its own step size. A parameter with one
    entry in each row, such as a bias, counts as a single row.
    """

    def __init__(self, upload: Upload) -> None:
        self.upload = upload

    def client(self) -> ClientStage:
        """Return the client half of this stage."""
        return ClientCompress(upload=self.upload)

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Restore the parameters from compressed changes. An update in full precision is returned unchanged."""
        if update.form == FULL_PRECISION:
            return update
        tensors = restore(update.plan, context.state, update.tensors, update.scales)
        return replace(update, tensors=tensors, form=FULL_PRECISION, scales=None)


@torch.no_grad()
def compress(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], upload: Upload, *, seed: int
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the changes ``after - before`` in float16 or int8, and the step sizes of int8.

    Rounding to int8 is stochastic, so use another ``seed`` for each client and round. Raise ``ShapeError`` if names or
    shapes in ``after`` and ``before`` differ, for example because an earlier client stage has encoded ``after``. Raise
    ``ReplyError`` if a change is not finite or too large for the encoding.
    """
    if wrong := name_misfits(after, before):
        raise ShapeError(f"the model of the reply is not the one that the server sent ({wrong})")
    tensors: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(derive(seed, "upload"))
    for name, new in after.items():
        change = new.to(torch.promote_types(new.dtype, torch.float32)) - before[name]
        if upload == "int8":
            tensors[name], scales[name] = _quantise(change, generator)
        else:
            tensors[name] = change.to(torch.float16)
        if not scales.get(name, tensors[name]).isfinite().all():
            raise ReplyError(
                f"parameter {name} changed by up to {change.abs().max():g}, which {upload} cannot carry: train with a "
                f"lower learning rate, or let the server ask for upload='float32'"
            )
    if upload != "int8":
        return tensors, None
    # Scales mark the form int8, even if there are no parameters.
    return tensors, torch.cat([scales[name] for name in sorted(scales)]) if scales else torch.empty(0)


@torch.no_grad()
def restore(
    plan: Plan, global_state: Mapping[str, Tensor], changes: Mapping[str, Tensor], scales: Tensor | None
) -> dict[str, Tensor]:
    """Check ``changes``, and return the client's parameters: its slice of the global state plus the changes."""
    form = torch.empty(0, dtype=torch.float16 if scales is None else torch.int8)
    check_reply(dict.fromkeys(plan.axes, form), plan, changes)
    by_name = None if scales is None else _scales_by_name(plan, scales)
    state = plan.extract(global_state)
    for name, parameter in state.items():
        change = changes[name].to(torch.float32)
        if by_name is not None:
            rows = change.reshape(_rows(change.shape))  # (rows, entries)
            change = rows.mul_(by_name[name].unsqueeze(1)).view(parameter.shape)
        # In place: with new tensors, memory was fragmented and three slices were allocated instead of one.
        parameter += change.to(parameter)
    return state


def _quantise(change: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = change.reshape(_rows(change.shape))  # (rows, entries)
    scales = (rows.abs().amax(1) / _STEPS).to(torch.float32)  # (rows,)
    # Rounding to the nearest step would lose a drift of less than half a step in every client and round. If one entry
    # changes much more than the others, this affects the rest of its row.
    draws = torch.rand(rows.shape, generator=generator).to(rows.device)
    steps = (rows / scales.where(scales > 0, 1.0).unsqueeze(1)).add_(draws).floor_().clamp_(-_STEPS, _STEPS)
    return steps.to(torch.int8).view(change.shape), scales


def _rows(shape: Sequence[int]) -> tuple[int, int]:
    size = math.prod(shape)
    rows = shape[0] if shape and size > shape[0] else min(size, 1)
    return rows, max(size, 1) // max(rows, 1)


def _scales_by_name(plan: Plan, scales: Tensor) -> dict[str, Tensor]:
    rows = {name: _rows(plan.shapes[name])[0] for name in sorted(plan.axes)}
    expected = (sum(rows.values()),)
    if scales.dtype != torch.float32 or scales.shape != expected:
        form = f"{scales.dtype} of shape {tuple(scales.shape)}"
        raise ReplyError(f"reply refused: its scales are {form}, expected torch.float32 of shape {expected}")
    by_name = dict(zip(rows, scales.split(list(rows.values())), strict=True))
    if wrong := [name for name, steps in by_name.items() if not (steps.isfinite() & (steps >= 0)).all()]:
        raise ReplyError(f"reply refused: scales of {listed(wrong)} are no finite numbers from 0 up")
    return by_name
