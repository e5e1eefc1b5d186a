"""Which parameters travel and are averaged; the others stay with their clients (LG-FedAvg; none travel: Standalone)."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.errors import ConfigError

ALL = ("*",)
"""The patterns by which every parameter is shared."""


def is_shared(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name fits one of some patterns, as ``fnmatch`` knows them."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def shared_part(plan: Plan, patterns: Sequence[str]) -> Plan:
    """Return the part of a plan that is shared; a pattern that fits no parameter is a mistake."""
    if tuple(patterns) == ALL:
        return plan
    idle = [pattern for pattern in patterns if not any(is_shared(name, [pattern]) for name in plan.axes)]
    if idle:
        raise ConfigError(f"shared: no parameter matches {', '.join(idle)}; the parameters are {', '.join(plan.axes)}")
    return Plan({name: axes for name, axes in plan.axes.items() if is_shared(name, patterns)})


def initial_state(build: Callable[[float], nn.Module], rate: float, seed: int) -> dict[str, Tensor]:
    """Return the parameters of a freshly built model, the same for equal seeds."""
    with kept_random_state(seed):
        model = build(rate)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
