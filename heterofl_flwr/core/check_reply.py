"""Checks of a client's reply, and of a model from a user's code: names, shapes, dtypes and values."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError, RoundError
from heterofl_flwr.common.named_tensors import norm_between
from heterofl_flwr.core.slice_plan import Plan

LARGEST_ENTRY = 1e15
"""Upper bound on the magnitude of a reply's entries. A sum over a billion clients with a billion examples each then
fits float32.
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
    """Raise ``ReplyError`` if a client's reply is invalid. The message names up to five faults.

    ``largest`` is the upper bound on an entry's magnitude. ``norm_bound`` is the upper bound on the L2 norm of the
    client's change; 0 means no bound.
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


def check_names(plan: Plan, names: Collection[str]) -> None:
    """Raise ``ReplyError`` if ``names`` differ from the plan's parameters."""
    _raise_if_any(list(_name_faults(plan, names)))


def check_model(new: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Raise ``RoundError`` if the model ``new`` has NaN, infinity, or other names, shapes or dtypes than ``state``.

    The message names ``source``, which returned the model, and up to five faults.
    """
    faults = [f"{name} is missing" for name in state.keys() - new.keys()]
    for name, tensor in new.items():
        if (like := state.get(name)) is None:
            faults.append(f"{name} is no parameter")
        else:
            faults += _tensor_faults(name, tensor, tuple(like.shape), like.dtype)
    if faults := faults or list(value_faults(new)):
        raise RoundError(f"{source} returned a model that is not usable: {_shown(sorted(faults))}")


def _raise_if_any(faults: Sequence[str]) -> None:
    if faults:
        raise ReplyError(f"reply refused: {_shown(faults)}")


def _shown(faults: Sequence[str]) -> str:
    rest = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return f"{'; '.join(faults[:_SHOWN])}{rest}"


def _name_faults(plan: Plan, names: Collection[str]) -> Iterator[str]:
    unknown = [name for name in names if name not in plan.axes]
    missing = [name for name in plan.axes if name not in names]
    for wrong, fault in ((unknown, "names are not in its plan"), (missing, "parameters of its plan are missing")):
        if wrong:
            shown = ", ".join(repr(name)[:80] for name in wrong[:3]) + (", ..." if len(wrong) > 3 else "")
            yield f"{len(wrong)} {fault} ({shown})"


def _tensor_faults(name: str, new: object, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[str]:
    if not isinstance(new, Tensor) or new.layout != torch.strided:
        yield f"{name} is {type(new).__name__}, expected a dense tensor"
    elif new.dtype != dtype:
        yield f"{name} is {new.dtype}, expected {dtype}"
    elif new.shape != shape:
        yield f"{name} has shape {tuple(new.shape)}, expected {shape}"


def value_faults(sub: Mapping[str, Tensor], largest: float = math.inf) -> Iterator[str]:
    """Yield an error message for each floating-point tensor with NaN, infinity or a magnitude above ``largest``."""
    for name, tensor in sub.items():
        flat = tensor.reshape(-1)
        # The norm bounds every entry, is not finite if any entry is not, and is much cheaper than comparing each entry.
        # It can be too large, or overflow, for valid entries, which are then compared. Integers are not averaged.
        square = torch.dot(flat, flat).item() if flat.is_floating_point() else 0.0
        if math.isfinite(square) and square <= largest**2:
            continue
        if not flat.isfinite().all():
            yield f"{name} contains NaN or infinity"
        elif (magnitude := flat.abs().max().item()) > largest:
            yield f"{name} has entries up to {magnitude:.4g}, expected up to {largest:g}"
