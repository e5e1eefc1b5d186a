"""Checks of a client's reply: names, shapes, dtypes, NaN and infinity, magnitudes, and the norm of its change."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.common.named_tensors import norm_between
from heterofl_flwr.core.slice_plan import Plan

LARGEST_ENTRY = 1e15
"""Largest magnitude of a parameter's entries that servers accept. A sum over a billion clients with a billion examples
each then fits single precision.
"""

_SHOWN = 5


def check_reply(
    state: Mapping[str, Tensor],
    plan: Plan,
    sub: Mapping[str, Tensor],
    weight: float = 1.0,
    largest: float = math.inf,
    *,
    norm_bound: float = 0.0,
) -> None:
    """Raise ``ReplyError`` with the list of a reply's faults, if it has any.

    ``norm_bound`` is an upper bound on the L2 norm of the difference between the reply and ``state``; 0 for no bound.
    """
    # Sums may be in single precision, where a weight outside its range would become 0 or infinity.
    single = torch.finfo(torch.float32)
    faults = list(_name_faults(plan, sub))
    if not isinstance(weight, Real) or not (weight == 0 or single.tiny <= weight <= single.max):
        expected = f"expected 0 or a number from {single.tiny:.0e} to {single.max:.0e}"
        faults.insert(0, f"its weight is {weight!r}, {expected}")
    for name, shape in plan.shapes.items():
        if name in sub:
            faults += _tensor_faults(name, sub[name], shape, state[name].dtype)
    if not faults:
        faults = list(value_faults(sub, largest))
    if not faults and norm_bound and not (distance := norm_between(sub, plan.extract(state))) <= norm_bound:
        faults = [f"its change has an L2 norm of {distance:.4g}, expected up to {norm_bound:g} (norm_bound)"]
    _raise_if_any(faults)


def check_names(plan: Plan, names: Iterable[str]) -> None:
    """Raise ``ReplyError`` unless ``names`` are exactly the parameters of the plan."""
    _raise_if_any(list(_name_faults(plan, dict.fromkeys(names))))


def _raise_if_any(faults: Sequence[str]) -> None:
    if faults:
        rest = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ReplyError(f"reply refused: {'; '.join(faults[:_SHOWN])}{rest}")


def _name_faults(plan: Plan, sub: Mapping[str, object]) -> Iterator[str]:
    unknown = [name for name in sub if name not in plan.axes]
    missing = [name for name in plan.axes if name not in sub]
    for names, fault in ((unknown, "names are not in its plan"), (missing, "parameters of its plan are missing")):
        if names:
            shown = ", ".join(repr(name)[:80] for name in names[:3]) + (", ..." if len(names) > 3 else "")
            yield f"{len(names)} {fault} ({shown})"


def _tensor_faults(name: str, new: object, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[str]:
    if not isinstance(new, Tensor) or new.layout != torch.strided:
        yield f"{name} is {type(new).__name__}, expected a dense tensor"
    elif new.dtype != dtype:
        yield f"{name} is {new.dtype}, expected {dtype}"
    elif new.shape != shape:
        yield f"{name} has shape {tuple(new.shape)}, expected {shape}"


def value_faults(sub: Mapping[str, Tensor], largest: float = math.inf) -> Iterator[str]:
    """Yield a message for each tensor with NaN, infinity or an entry larger than ``largest`` in magnitude."""
    for name, tensor in sub.items():
        flat = tensor.reshape(-1)
        # The norm bounds every entry, is not finite if any entry is not, and is much cheaper than comparing each entry.
        # It can be too large, or overflow, for valid entries; only then they are compared. Integers are not averaged.
        square = torch.dot(flat, flat).item() if flat.is_floating_point() else 0.0
        if math.isfinite(square) and square <= largest**2:
            continue
        if not flat.isfinite().all():
            yield f"{name} contains NaN or infinity"
        elif (magnitude := flat.abs().max().item()) > largest:
            yield f"{name} has entries up to {magnitude:.4g}, expected up to {largest:g}"
