"""The slow twin of slicing and of the counting mean: one entry at a time, in Python's own floats."""

import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from heterofl_flwr.core import Axes

Positions = tuple[tuple[int, ...], ...]
"""For each axis of a parameter, the positions in the global parameter that a client holds, in the client's order."""


@dataclass(frozen=True)
class Reply:
    """What one client sends, and where in the global model it belongs."""

    positions: Mapping[str, Positions]
    values: Mapping[str, torch.Tensor]
    labels: Collection[int] | None = None
    weight: float = 1.0


def positions(full: int, kept: int, parts: int = 1, places: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the kept positions of an axis of equal parts, each of which keeps ``places``, by default the first."""
    kept_of_part = range(kept // parts) if places is None else places
    return tuple(part * (full // parts) + place for part in range(parts) for place in kept_of_part)


def held(axes: Axes) -> Positions:
    """Return the positions that a parameter's axes name."""
    return tuple(positions(axis.full, axis.kept, axis.parts, axis.index) for axis in axes)


def entries(held: Positions) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield (local index, global index) of each entry that a client holds."""
    for local in product(*(range(len(axis)) for axis in held)):
        yield local, tuple(axis[place] for axis, place in zip(held, local, strict=True))


def cut(tensor: torch.Tensor, held: Positions) -> torch.Tensor:
    """Return the client's slice of a parameter."""
    local = torch.empty([len(axis) for axis in held], dtype=tensor.dtype)
    for place, origin in entries(held):
        local[place] = tensor[origin].item()
    return local


def holders(
    name: str, replies: Sequence[Reply], counts_row: Callable[[Reply, int], bool]
) -> dict[tuple[int, ...], list[tuple[float, float]]]:
    """Return for each entry of one parameter that somebody held the (weight, value) of its holders."""
    gathered: dict[tuple[int, ...], list[tuple[float, float]]] = {}
    for reply in replies:
        if name in reply.values:
            value = reply.values[name].double().numpy()
            for local, origin in entries(reply.positions[name]):
                if not origin or counts_row(reply, origin[0]):
                    gathered.setdefault(origin, []).append((reply.weight, value[local].item()))
    return gathered


def counting_mean(
    state: Mapping[str, torch.Tensor],
    replies: Sequence[Reply],
    label_rows: Sequence[str] = (),
    *,
    classes: int = 0,
    extra_rows: bool = True,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the new state in double precision, and which of its entries somebody held."""

    def counts_row(reply: Reply, row: int) -> bool:
        return reply.labels is None or row in reply.labels or (extra_rows and row >= classes)

    means, held = {}, {}
    for name, old in state.items():
        rule = counts_row if name in label_rows else lambda reply, row: True
        means[name] = old.double().numpy().copy()
        held[name] = np.zeros(tuple(old.shape), dtype=bool)
        for entry, given in holders(name, replies, rule).items():
            total = sum(weight for weight, _ in given)
            if total > 0:
                means[name][entry] = sum(weight * value for weight, value in given) / total
                held[name][entry] = True
    return means, held


def rolling(shift: int) -> Callable[[int, int], list[int]]:
    """Return FedRolex' slice function: a window that starts at ``shift`` and wraps around."""
    return lambda full, kept: sorted((shift + place) % full for place in range(kept))


def scattered(seed: int) -> Callable[[int, int], list[int]]:
    """Return Federated Dropout's slice function: a random subset, the same for axes of equal lengths."""
    return lambda full, kept: sorted(random.Random(f"{seed}/{full}/{kept}").sample(range(full), kept))


def robust_mean(state, replies, robust, label_rows=(), *, classes=0, extra_rows=True):
    """Return the robust mean of each entry over its holders, in double precision."""

    def counts_row(reply: Reply, row: int) -> bool:
        return reply.labels is None or row in reply.labels or (extra_rows and row >= classes)

    given = {}  # (parameter, entry) -> {reply: what it changed}
    for name, old in state.items():
        for number, reply in enumerate(replies):
            rule = counts_row if name in label_rows else lambda reply, row: True
            for entry, [(_, value)] in holders(name, [reply], rule).items():
                given.setdefault((name, entry), {})[number] = value - old[entry].double().item()
    agreed = {at: _agreed(at, given, robust) for at, own in given.items() if len(own) >= 3}
    new = {name: old.double().numpy().copy() for name, old in state.items()}
    for (name, entry), own in given.items():
        if (name, entry) in agreed:
            new[name][entry] += agreed[name, entry]
        elif robust.few == "shorter":
            steps = [
                change * _share(number, given, agreed) * _shortened(number, name, given, agreed)
                for number, change in own.items()
            ]
            new[name][entry] += sum(steps) / len(steps)
    return new


def _agreed(at, given, robust):
    """Return by how much three holders or more change an entry."""
    changes = dict(given[at])
    if robust.mean == "clip":
        alike = [own for (name, _), own in given.items() if name == at[0] and len(own) == len(changes)]
        lengths = {
            number: root_mean_square(own[number] for own in alike if number in own)
            for number in {number for own in alike for number in own}
        }
        bound = sorted(lengths.values())[(len(lengths) - 1) // 2]
        return sum(
            change * min(1, bound / lengths[number] if lengths[number] else 1) for number, change in changes.items()
        ) / len(changes)
    middle = sorted(changes.values())
    most = (len(middle) - 1) // 2
    drop = most if robust.mean == "median" else min(max(1, int(robust.trim * len(middle) + 1e-9)), most)
    middle = middle[drop : len(middle) - drop]
    return sum(middle) / len(middle)


def _share(number, given, agreed):
    """Return the cosine of a reply's changes and the agreed ones, where it has both; at least 0."""
    pairs = [(given[at][number], change) for at, change in agreed.items() if number in given[at]]
    norms = math.sqrt(sum(own**2 for own, _ in pairs) * sum(other**2 for _, other in pairs))
    return max(0.0, sum(own * other for own, other in pairs) / norms) if norms else 0.0


def _shortened(number, name, given, agreed):
    """Return what brings a reply's changes of entries of few holders to the length of the agreed ones."""
    many = [change for at, change in agreed.items() if at[0] == name]
    many = many or [change for at, change in agreed.items() if number in given[at]]
    few = root_mean_square(
        own[number] for at, own in given.items() if at[0] == name and number in own and at not in agreed
    )
    return min(1.0, root_mean_square(many) / few) if few else 0.0


def root_mean_square(values):
    """Return the root mean square of some numbers; 0 of none."""
    values = list(values)
    return math.sqrt(sum(value**2 for value in values) / len(values)) if values else 0.0
