"""Look at a client's reply before anything of it is used."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ReplyError

_SHOWN = 5


def check_reply(
    state: Mapping[str, Tensor], plan: Plan, sub: Mapping[str, Tensor], weight: float, largest: float = math.inf
) -> None:
    """Raise ``ReplyError`` that names what is wrong with a reply; return quietly if nothing is."""
    faults = [*_faults_of_weight(weight), *_faults_of_names(plan, sub)]
    for name, shape in plan.shapes.items():
        if name in sub and not _fits(sub[name], shape, state[name].dtype):
            faults.append(_fault_of_tensor(name, sub[name], shape, state[name].dtype))
    if not faults and not _all_finite(sub):
        faults = [f"{name} contains NaN or infinity" for name, tensor in sub.items() if not tensor.isfinite().all()]
    if not faults and largest < math.inf:
        faults = list(_faults_of_size(sub, largest))
    _refuse(faults)


def check_names(plan: Plan, names: Iterable[str]) -> None:
    """Raise ``ReplyError`` unless a reply has the parameters of its plan and no others."""
    _refuse(list(_faults_of_names(plan, dict.fromkeys(names))))


def check_norm(state: Mapping[str, Tensor], plan: Plan, sub: Mapping[str, Tensor], bound: float) -> None:
    """Raise ``ReplyError`` if a reply is further from what its client was sent than a bound, in the L2 norm."""
    found = norm_between(sub, plan.extract(state))
    if not found <= bound:
        raise ReplyError(f"reply refused: its change has an L2 norm of {found:.4g}, expected up to {bound:g}")


def norm_between(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of the difference of two states, over all their entries, in double precision."""
    return math.hypot(*((own.double() - two[name]).norm().item() for name, own in one.items()))


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ReplyError(f"reply refused: {'; '.join(faults[:_SHOWN])}{more}")


def _faults_of_weight(weight: float) -> Iterator[str]:
    # Sums may be in single precision, where a weight out of its range would vanish or overflow.
    single = torch.finfo(torch.float32)
    if not isinstance(weight, Real) or not (weight == 0 or single.tiny <= weight <= single.max):
        yield f"its weight is {weight!r}, expected 0 or a number from {single.tiny:.0e} to {single.max:.0e}"


def _faults_of_names(plan: Plan, sub: Mapping[str, object]) -> Iterator[str]:
    unknown = [name for name in sub if name not in plan.axes]
    if unknown:
        yield f"{len(unknown)} names are not in its plan ({_quoted(unknown)})"
    missing = [name for name in plan.axes if name not in sub]
    if missing:
        yield f"{len(missing)} parameters of its plan are missing ({_quoted(missing)})"


def _fits(new: object, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return isinstance(new, Tensor) and new.shape == shape and new.dtype == dtype and new.layout == torch.strided


def _fault_of_tensor(name: str, new: object, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    if not isinstance(new, Tensor) or new.layout != torch.strided:
        return f"{name} is {type(new).__name__}, expected a dense tensor"
    if new.dtype != dtype:
        return f"{name} is {new.dtype}, expected {dtype}"
    return f"{name} has shape {tuple(new.shape)}, expected {shape}"


def _all_finite(sub: Mapping[str, Tensor]) -> bool:
    # A sum is not finite if any entry is not, and is much cheaper than a look at each entry. It can also overflow,
    # so a sum that is not finite only makes us look.
    if math.isfinite(sum(tensor.sum().item() for tensor in sub.values())):
        return True
    return all(tensor.isfinite().all() for tensor in sub.values())


def _faults_of_size(sub: Mapping[str, Tensor], largest: float) -> Iterator[str]:
    for name, tensor in sub.items():
        flat = tensor.reshape(-1)
        # No entry is larger than the norm, which costs a fraction of a look at each.
        if not torch.dot(flat, flat).item() <= largest**2 and (found := flat.abs().max().item()) > largest:
            yield f"{name} has entries up to {found:.4g}, expected up to {largest:g}"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name)[:80] for name in names[:3]) + (", ..." if len(names) > 3 else "")
