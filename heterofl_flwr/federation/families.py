"""Families of clients: within one they train slices of one global model; from one to another architectures differ.

The families' models lie side by side in one state, each parameter under its family's name and a dot, as in a
``ModuleDict``. A client holds a slice of its own family's alone, so the counting mean, server optimisers and
checkpoints need not know of families.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from statistics import fmean

from torch import nn

from heterofl_flwr.core.levels import LEVELS
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.federation import Federation, State, Value
from heterofl_flwr.nn.models import Build

OF_ALL = "global-"
"""How metrics begin that are about a family's model, not about clients."""


class Families(Federation):
    """A federation of families.

    A client's family is the remainder of its place (see ``Nodes``) by the number of families. Under *Fix* a client's
    rate follows from its place within its family, so that each family has the mix's rates in the mix's proportions,
    however the blocks of partitions lie. All but the builds is that of ``like``, whose model is ``side_by_side``.
    """

    def __init__(self, builds: Mapping[str, Build], like: Federation) -> None:
        wrong = [name for name in builds if not re.fullmatch(r"[^\W\d][\w-]*", name) or name in LEVELS]
        if wrong or not builds:
            raise ConfigError(
                f"families are named {', '.join(map(repr, wrong)) or 'not at all'}: expected one name or more, of "
                f"letters, digits, _ and -, none of them that of a level ({', '.join(LEVELS)})"
            )
        self._members = {name: replace(like, build=build) for name, build in builds.items()}
        super().__init__(**{field.name: getattr(like, field.name) for field in fields(Federation)})

    @property
    def members(self) -> Mapping[str, Federation]:
        """The federation of each family, whose parameters have their own names; all know the same clients."""
        return self._members

    def reset(self) -> None:
        """Forget the clients and what the optimiser keeps."""
        super().reset()
        for member in self.members.values():
            member.nodes = self.nodes

    @cached_property
    def rows(self) -> list[str]:
        """The parameters whose rows belong to classes."""
        return [f"{name}.{row}" for name, member in self.members.items() for row in member.rows]

    def _find_untrained(self, rate: float) -> frozenset[str]:
        """Return what clients of a rate hold and do not train, of every family; ``untrained`` caches it."""
        found = (under(name, dict.fromkeys(member.untrained(rate))) for name, member in self.members.items())
        return frozenset().union(*found)

    def train_plan(self, server_round: int, node_id: int, rate: float) -> Plan:
        """Return the slice that a client trains in a round: of its family's model."""
        family = self.family(node_id)
        return Plan(under(family, self.members[family].train_plan(server_round, node_id, rate).axes))

    def initial_state(self) -> State:
        """Return the families' freshly built models, each as it would be alone."""
        states = [under(name, member.initial_state()) for name, member in self.members.items()]
        return {name: tensor for own in states for name, tensor in own.items()}


def side_by_side(builds: Mapping[str, Build], rate: float) -> nn.Module:
    """Return the families' models of a rate as one."""
    return nn.ModuleDict({name: build(rate) for name, build in builds.items()})


def under(family: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return a family's values under its name; as they are where there are no families."""
    return {f"{family}.{name}" if family else name: value for name, value in values.items()}


def within(family: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return what ``under`` put under a family's name; all values where there are no families."""
    prefix = f"{family}." if family else ""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def with_families(by_family: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return metrics of families as ``family/metric``, and the plain means over families of those of their models."""
    found = {f"{family}/{name}": value for family, own in by_family.items() for name, value in own.items()}
    names = dict.fromkeys(name for own in by_family.values() for name in own if name.startswith(OF_ALL))
    return {name: fmean(own[name] for own in by_family.values() if name in own) for name in names} | found
