"""The slow twin of slicing and of the counting mean: one entry at a time, in Python's own floats."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import nn

from heterofl_flwr.core import Axes, Plan

Entry = tuple[int, ...]
Positions = tuple[tuple[int, ...], ...]
"""For each axis of a parameter, the positions in the global parameter that a client holds, in the client's order."""


@dataclass(frozen=True)
class Reply:
    """What one client sends, and where in the global model it belongs."""

    positions: Mapping[str, Positions]
    values: Mapping[str, torch.Tensor]
    labels: Collection[int] | None = None
    weight: float = 1.0


def random_state(shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random parameters of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tuple(shape), generator=generator) for name, shape in shapes.items()}


def trained_reply(plan: Plan, state: Mapping[str, torch.Tensor], amount: float, labels=None) -> Reply:
    """Return what a client sends that adds an amount to each entry of its slice."""
    places = {name: held(axes) for name, axes in plan.axes.items()}
    return Reply(places, {name: cut(state[name], own) + amount for name, own in places.items()}, labels)


def positions(full: int, kept: int, parts: int = 1, places: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the kept positions of an axis of equal parts, each of which keeps ``places``, by default the first."""
    kept_of_part = range(kept // parts) if places is None else places
    return tuple(part * (full // parts) + place for part in range(parts) for place in kept_of_part)


def held(axes: Axes) -> Positions:
    """Return the positions that a parameter's axes name."""
    return tuple(positions(axis.size, axis.local_size, axis.parts, axis.index) for axis in axes)


def entries(held: Positions) -> Iterator[tuple[Entry, Entry]]:
    """Yield (local index, global index) of each entry that a client holds."""
    for local in product(*(range(len(axis)) for axis in held)):
        yield local, tuple(axis[place] for axis, place in zip(held, local, strict=True))


def cut(tensor: torch.Tensor, held: Positions) -> torch.Tensor:
    """Return the client's slice of a parameter."""
    local = torch.empty([len(axis) for axis in held], dtype=tensor.dtype)
    for place, origin in entries(held):
        local[place] = tensor[origin].item()
    return local


def values_by_entry(
    replies: Sequence[Reply], label_rows: Sequence[str], classes: int, extra_rows: bool
) -> dict[tuple[str, Entry], dict[int, float]]:
    """Return for each entry of each parameter that somebody held the values of its holders, by reply."""
    found: dict[tuple[str, Entry], dict[int, float]] = {}
    for number, reply in enumerate(replies):
        for name, tensor in reply.values.items():
            values = tensor.double().numpy()
            masked = name in label_rows and reply.labels is not None
            for local, origin in entries(reply.positions[name]):
                if not masked or origin[0] in reply.labels or (extra_rows and origin[0] >= classes):
                    found.setdefault((name, origin), {})[number] = values[local].item()
    return found


def counting_mean(state, replies, label_rows=(), *, classes=0, extra_rows=True):
    """Return the new state in double precision, and which of its entries somebody held."""
    means = {name: old.double().numpy().copy() for name, old in state.items()}
    held = {name: np.zeros(tuple(old.shape), dtype=bool) for name, old in state.items()}
    for (name, entry), values in values_by_entry(replies, label_rows, classes, extra_rows).items():
        total = sum(replies[number].weight for number in values)
        if total > 0:
            means[name][entry] = sum(replies[number].weight * value for number, value in values.items()) / total
            held[name][entry] = True
    return means, held


def rolling(shift: int) -> Callable[[int, int], list[int]]:
    """Return FedRolex' slice function: a window that starts at ``shift`` and wraps around."""
    return lambda full, kept: sorted((shift + place) % full for place in range(kept))


def scattered(seed: int) -> Callable[[int, int], list[int]]:
    """Return Federated Dropout's slice function: a random subset, the same for axes of equal lengths."""
    return lambda full, kept: sorted(random.Random(f"{seed}/{full}/{kept}").sample(range(full), kept))


def origins(plan: Plan, full: nn.Module) -> dict[str, torch.Tensor]:
    """Return for each entry of each local parameter its flat position in the global parameter."""
    return plan.extract(
        {name: torch.arange(own.numel()).view(own.shape) for name, own in full.named_parameters(remove_duplicate=False)}
    )


@torch.no_grad()
def zero_extend(plan: Plan, full: nn.Module, local: nn.Module) -> None:
    """Set every parameter of ``full`` to zero, except for the entries that ``local`` holds."""
    places = origins(plan, full)
    kept = dict(local.named_parameters(remove_duplicate=False))
    for name, parameter in full.named_parameters(remove_duplicate=False):
        parameter.zero_()
        if name in kept:
            parameter.view(-1)[places[name].flatten()] = kept[name].flatten()


def spread(local: torch.Tensor, axis: int, full: int, places) -> torch.Tensor:
    """Return zeros of length ``full`` along an axis, with the local tensor at the given places."""
    shape = list(local.shape)
    shape[axis] = full
    return torch.zeros(shape, dtype=local.dtype).index_copy_(axis, torch.tensor(places), local)


def robust_mean(state, replies, robust, label_rows=(), *, classes=0, extra_rows=True):
    """Return the robust mean of each entry over its holders, in double precision."""
    given = {
        (name, entry): {number: value - state[name][entry].double().item() for number, value in values.items()}
        for (name, entry), values in values_by_entry(replies, label_rows, classes, extra_rows).items()
    }
    new = {name: old.double().numpy().copy() for name, old in state.items()}
    for (name, entry), own in given.items():
        if len(own) >= 3:
            new[name][entry] += _agreed(own, robust)
        elif robust.few == "mean":
            new[name][entry] += sum(own.values()) / len(own)
    return new


def _agreed(changes, robust):
    """Return by how much three holders or more change an entry."""
    middle = sorted(changes.values())
    most = (len(middle) - 1) // 2
    drop = most if robust.mean == "median" else min(max(1, int(robust.trim * len(middle) + 1e-9)), most)
    middle = middle[drop : len(middle) - drop]
    return sum(middle) / len(middle)


def stale_step(replies, models, clocks, *, exponent, one_clock):
    """Add the model and the clocks after a step, where each single entry has a clock.

    A reply is its plan, the step whose model it began with, its weight, and a function from a parameter's name and the
    local and global places of an entry to the change there; None where the reply does not count.
    """
    moves, touched = {}, set()
    for plan, sent, weight, change in replies:
        for name, axes in plan.axes.items():
            for local, entry in entries(held(axes)):
                touched.add((name, entry))
                stale = clocks[-1][name][entry] - clocks[sent][name][entry]
                if (own := change(name, local, entry)) is not None:
                    moves.setdefault((name, entry), []).append((weight * (1 + stale) ** -exponent, own))
    new, ticks = ({name: own.copy() for name, own in last.items()} for last in (models[-1], clocks[-1]))
    for (name, entry), own in moves.items():
        new[name][entry] += sum(w * change for w, change in own) / sum(w for w, _ in own)
    for name, own in ticks.items():
        for entry in np.ndindex(*own.shape):
            own[entry] += one_clock or (name, entry) in touched
    models.append(new)
    clocks.append(ticks)
