"""Checks of a client's reply before anything of it is used."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ReplyError

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
    """Raise ``ReplyError`` that names what is wrong with a reply; ``norm_bound`` limits its distance to the state."""
    # Sums may be in single precision, where a weight out of its range would vanish or overflow.
    single = torch.finfo(torch.float32)
    faults = list(_name_faults(plan, sub))
    if not isinstance(weight, Real) or not (weight == 0 or single.tiny <= weight <= single.max):
        expected = f"expected 0 or a number from {single.tiny:.0e} to {single.max:.0e}"
        faults.insert(0, f"its weight is {weight!r}, {expected}")
    for name, shape in plan.shapes.items():
        if name in sub:
            faults += _tensor_faults(name, sub[name], shape, state[name].dtype)
    if not faults and not _all_finite(sub):
        faults = [f"{name} contains NaN or infinity" for name, tensor in sub.items() if not tensor.isfinite().all()]
    if not faults and largest < math.inf:
        faults = list(_size_faults(sub, largest))
    if not faults and norm_bound and not (found := norm_between(sub, plan.extract(state))) <= norm_bound:
        faults = [f"its change has an L2 norm of {found:.4g}, expected up to {norm_bound:g}"]
    _raise_if_any(faults)


def check_names(plan: Plan, names: Iterable[str]) -> None:
    """Raise ``ReplyError`` unless a reply has the parameters of its plan and no others."""
    _raise_if_any(list(_name_faults(plan, dict.fromkeys(names))))


def norm_between(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of the difference of two states, over all their entries, in double precision."""
    return math.hypot(*((own.double() - two[name]).norm().item() for name, own in one.items()))


def _raise_if_any(faults: Sequence[str]) -> None:
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ReplyError(f"reply refused: {'; '.join(faults[:_SHOWN])}{more}")


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


def _all_finite(sub: Mapping[str, Tensor]) -> bool:
    # A sum is not finite if any entry is not, and is much cheaper than a look at each entry. It can also overflow,
    # so a sum that is not finite only makes us look.
    if math.isfinite(sum(tensor.sum().item() for tensor in sub.values())):
        return True
    return all(tensor.isfinite().all() for tensor in sub.values())


def _size_faults(sub: Mapping[str, Tensor], largest: float) -> Iterator[str]:
    for name, tensor in sub.items():
        flat = tensor.reshape(-1)
        # No entry is larger than the norm, which costs a fraction of a look at each.
        if not torch.dot(flat, flat).item() <= largest**2 and (found := flat.abs().max().item()) > largest:
            yield f"{name} has entries up to {found:.4g}, expected up to {largest:g}"
