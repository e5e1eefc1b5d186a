"""HeteroFL inside each family of architectures, FedH2L between families.

A round has two exchanges:

1. Each client trains a slice of its family's model on its own data, as in HeteroFL, and publishes what the trained
   slice says of the round's seed examples.
2. Each gets the posteriors of the other families, one mean a family, takes the seed steps of FedH2L, and returns its
   slice. The server averages slices within each family.

The clients distil, and not the server: a seed step is held against a client's own data, which the server lacks, and so
the server needs no seed set and does no training. The price is a second exchange. A client keeps its slice from the
first to the second, so that parameters travel once each way; posteriors are a few kilobytes, whatever the number of
clients.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from torch import Tensor, stack, zeros

from heterofl_flwr import messages as wire
from heterofl_flwr.core.compression import Changes
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.evaluation import Answers, Summary, weighted_means
from heterofl_flwr.federation.families import Build, Families, side_by_side, under, with_families, within
from heterofl_flwr.federation.round import State, TrainReply
from heterofl_flwr.grids.guarded import crosses_superlink
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import batch_norms
from heterofl_flwr.strategies.fedh2l import Exchange
from heterofl_flwr.strategies.instructions import EvaluationRound, slices_of
from heterofl_flwr.strategies.queries import Queries


class Hybrid(Exchange):
    """Train one global model a family, over clients of unequal size, with the help of the other families.

    A client's family is the remainder of its partition by the number of families; messages name it (``family``). The
    global state has each family's parameters under its name and a dot, and evaluation its metrics as
    ``family/metric``. ``global-accuracy`` and the like are then plain means over families, all others are over clients.
    Clients answer ``train.publish`` and ``train.learn``; see ``heterofl_flwr.training.distill`` for what they do.

    Parameters
    ----------
    builds : Mapping[str, Callable[[float], nn.Module]]
        For each family, by name, the function from a rate to its model.
    mix : str | Mix
        The rates of the clients and their shares, in each family.
    classes, seed_size, seed_batch, temperature
        Those of ``FedH2L``.
    **options
        Those of ``HeteroFLBase``, but for ``shared``.
    """

    def __init__(self, builds: Mapping[str, Build], mix: str | Mix = "a1-b1-c1-d1-e1", **options: Any) -> None:
        super().__init__(partial(side_by_side, builds), mix, **options)
        if self.federation.personal:
            raise ConfigError(
                "the models of a family are averaged whole, so no parameter can stay with a client: use "
                "heterofl_flwr.HeteroFL or FedH2L, or leave shared"
            )
        self.federation = self.families = Families(builds, self.federation)

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self.family_moments: dict[str, dict[float, Moments]] = {}

    def moment_tensors(self) -> dict[str, Tensor]:
        """Return the moments of the last evaluation, by family, rate and layer."""
        found = [under(name, wire.moment_tensors(own)) for name, own in self.family_moments.items()]
        return {name: tensor for own in found for name, tensor in own.items()}

    def _told(self, server_round: int, node_id: int, rate: float) -> dict[str, int | float | str | list[str]]:
        return {**super()._told(server_round, node_id, rate), wire.FAMILY: self.families.family(node_id)}

    def _slices(self, arrays: ArrayRecord, state: State) -> Mapping[int, ArrayRecord]:
        """Return each client's slice, under the parameters' own names; clients of one slice share a record."""
        slices = slices_of(self.federation, arrays, state, self._plans.values())
        family_of = {plan: self.families.family(node_id) for node_id, plan in self._plans.items()}
        records = {plan: ArrayRecord(within(family_of[plan], record)) for plan, record in slices.items()}
        return {node_id: records[plan] for node_id, plan in self._plans.items()}

    def _heard(self, published: Mapping[int, Tensor]) -> Mapping[int, ArrayRecord]:
        """Return for each client what the other families say, one mean a family; a family shares a record."""
        said: dict[str, list[Tensor]] = {name: [] for name in self.families.members}
        for node_id, own in published.items():
            said[self.families.family(node_id)].append(own)
        means = {name: stack(own).mean(0) for name, own in said.items() if own}
        others = {name: [mean for other, mean in means.items() if other != name] for name in means}
        records = {
            name: ArrayRecord({wire.POSTERIORS: stack(own) if own else zeros(0, *self._shape)})
            for name, own in others.items()
        }
        return {node_id: records[self.families.family(node_id)] for node_id in published}

    def _take(self, node_id: int, answer: TrainReply) -> None:
        """Add a client's reply, its parameters under its family's name."""
        family, sub = self.families.family(node_id), answer.sub
        named = replace(sub, tensors=under(family, sub.tensors)) if isinstance(sub, Changes) else under(family, sub)
        super()._take(node_id, replace(answer, sub=named))

    def _plan_as_sent(self, node_id: int) -> Plan:
        return Plan(within(self.families.family(node_id), self._plans[node_id].axes))

    def _ask(
        self,
        server_round: int,
        grid: Grid,
        arrays: ArrayRecord,
        rates_of: Mapping[int, tuple[float, ...]],
        told: Mapping[int, Mapping[str, object]],
    ) -> list[Message]:
        """Return the messages that ask for an evaluation of each family's model, by its own clients."""
        members = self.families.members
        parts = {name: ArrayRecord(within(name, arrays)) for name in members}
        normed = [name for name in members if self.evaluation.static_norm and batch_norms(members[name].model)]
        self.family_moments = {name: {} for name in normed}

        def rounds(asked: Mapping[int, tuple[float, ...]]) -> dict[str, EvaluationRound]:
            own = self.families.split(asked)
            return {name: EvaluationRound(members[name], parts[name], own[name], told) for name in members}

        remote = crosses_superlink(grid)
        totals = {name: self._sum_of_moments(members[name], remote) for name in normed}

        def add(node_id: int, found: Mapping[float, Moments]) -> None:
            totals[self.families.family(node_id)].add(node_id, found)

        asking = rounds(rates_of)
        if queries := [message for name in normed for message in asking[name].queries()]:
            layers = {
                node: {rate: members[self.families.family(node)].norms(rate) for rate in own}
                for node, own in rates_of.items()
            }
            self._query_moments(server_round, grid, Queries(queries, layers, self._timeout), add)
            self.family_moments = {name: total.result() for name, total in totals.items()}
            known = {node: self.family_moments.get(self.families.family(node), own) for node, own in rates_of.items()}
            if any(self.family_moments.values()) and (left := self._restrict(known)) != rates_of:
                asking = rounds(left)
        return [
            message for name, own in asking.items() for message in own.evaluations(self.family_moments.get(name, {}))
        ]

    def _scores(
        self, answers: Answers, summary: Summary = weighted_means
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return what evaluations add up to, for all clients and for each family."""
        add_up = partial(super()._scores, summary=summary)
        scores, levels = add_up(answers)
        found = {name: add_up(own) for name, own in self.families.split(answers).items() if own}
        scores |= with_families({name: own for name, (own, _) in found.items()})
        for level in levels:
            own_levels = {name: by_level[level] for name, (_, by_level) in found.items() if level in by_level}
            levels[level] |= with_families(own_levels)
        return scores, levels
