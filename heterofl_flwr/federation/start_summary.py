"""Summary and warnings at the start of a run."""

import logging
from collections.abc import Collection, Sequence

from heterofl_flwr.common.errors import counted
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.slice_rules import NESTED_RULES
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.limits import Limits
from heterofl_flwr.nn.build import equal_levels
from heterofl_flwr.nn.measure_moments import batch_norms

logger = logging.getLogger(__name__)


def log_summary(federation: Federation) -> None:
    """Log the mix, the size of each level's model, the slice rule and the stages."""
    options, mix = federation.options, federation.mix
    logger.info("\t├──> Mix: %s, %s", mix, federation.assignment)
    for rate in mix.all_rates:
        parameters = federation.architecture.plan(rate).parameters
        logger.info("\t│\t├── Level %s: rate %g, %s parameters", level_name(rate), rate, f"{parameters:,}")
    for warning in find_equal_levels(federation):
        logger.warning(warning)
    logger.info("\t├──> Rows by label: %s", ", ".join(federation.architecture.rows) or "none")
    if options.privacy.noise and federation.architecture.rows and options.averaging.labels != "none":
        logger.warning(
            "epsilon does not cover which classes a client has: with labels=%r they decide which rows count; "
            "choose labels='none' (train.labels=none)",
            options.averaging.labels,
        )
    logger.info("\t├──> Slices: %s; uploads: %s", options.slicing.slice_rule, options.training.upload)
    stages, proximal = federation.setup["stages"], options.training.proximal_mu
    logger.info("\t└──> Stages: %s%s", stages, f"; FedProx with proximal_mu {proximal:g}" if proximal else "")


def find_equal_levels(federation: Federation) -> list[str]:
    """Return a warning for each group of levels with models of equal shapes; [] with personal parameters."""
    plans = {rate: federation.architecture.plan(rate) for rate in federation.mix.all_rates}
    largest, smallest = federation.mix.global_rate, federation.mix.rates[-1]
    if len(plans) == 1 or federation.architecture.personal:  # shared parameters may be equal by intent
        return []
    if plans[smallest] == plans[largest]:
        return [
            f"build({smallest:g}) has the shapes of build({largest:g}), so all clients train the whole model: is its "
            f"first argument the rate, and do its widths follow from it?"
        ]
    return equal_levels(plans)


def count_releases(federation: Federation, rounds: range, *, simulated: bool) -> int:
    """Return an upper bound on the number of noisy releases (models and moments) in ``rounds``."""
    # Clients on other machines may report any capacity, so an evaluation may need the moments of every level.
    options, final_round = federation.options, rounds.stop - 1
    evaluation, levels = options.evaluation, len(federation.mix.all_rates)
    asks = evaluation.static_norm and options.sampling.fraction_evaluate and batch_norms(federation.architecture.model)
    evaluated = [
        number
        for number in rounds
        if asks and not federation.architecture.personal and evaluation.due(number, final_round)
    ]
    global_only = simulated or evaluation.nodes == "all"
    return len(rounds) + sum(
        1 if global_only and not evaluation.levels_due(number, final_round) else levels for number in evaluated
    )


def warn_of_names(limits: Limits, names: Collection[str]) -> None:
    """Warn if ``limits.levels`` or ``limits.partitions`` has a name that is not in ``names``."""
    for option in ("levels", "partitions"):
        if absent := sorted(name for name in getattr(limits, option) if name not in names):
            logger.warning(
                "%s names %s, and no present node has such a registered name or id; correct the name, unless the node "
                "comes later (without node authentication, nodes have ids alone)",
                option,
                ", ".join(absent),
            )


def warn_of_untrained(federation: Federation, server_round: int, node_ids: Sequence[int]) -> None:
    """Warn if fewer clients than needed can train the largest level of the mix.

    The needed number is the largest ``Needs.holders`` of the stages, but at least 1. Do not warn if slices move, if a
    node in ``node_ids`` is not registered yet, or if fewer clients than needed can train at all.
    """
    mix, holders = federation.mix, federation.levels.holders
    least = max(holders, 1)  # number of clients that must hold an entry to change it
    answered = all(node_id in federation.nodes for node_id in node_ids)
    rates = [federation.levels.largest_rate(server_round, node_id) for node_id in node_ids] if answered else []
    largest = sorted(rates, reverse=True)[least - 1] if len(rates) >= least else 0.0
    if 0 < largest < mix.rates[0] and federation.options.slicing.slice_rule in NESTED_RULES:
        total, part = federation.architecture.global_plan.parameters, federation.architecture.plan(largest).parameters
        logger.warning(
            "%s can train more than rate %g, and the mix %s has a model of rate %g: %d of its "
            "%d parameters are never trained; let larger clients take part, or begin the mix with that rate",
            f"fewer than {least} clients (holders)" if holders else "no client that is there",
            largest,
            mix,
            mix.rates[0],
            total - part,
            total,
        )


def warn_of_mix(federation: Federation, node_ids: Sequence[int]) -> None:
    """Warn if the privacy ``delta`` is too large for the number of clients, or if a part of the mix gets no client."""
    mix, clients, privacy = federation.mix, len(node_ids), federation.options.privacy
    if privacy.noise and privacy.delta * clients >= 1:
        logger.warning(
            "delta is %g with %s: epsilon at a delta of 1 / %d or more promises nothing; choose a smaller delta",
            privacy.delta,
            counted(clients, "client"),
            clients,
        )
    nodes = federation.nodes
    from_mix = any(node_id not in nodes or nodes[node_id].holds is None for node_id in node_ids)
    if federation.assignment == "fix" and from_mix and clients < len(mix.parts):
        logger.warning(
            "%s for the %d parts of the mix %s, so some level has none; start more nodes (simulated: "
            "heterofl run --clients 20, or flwr run . --federation-config 'num-supernodes=20')",
            counted(clients, "client"),
            len(mix.parts),
            mix,
        )
