"""What is said once of a federation: a summary of it, and warnings of clients that do not fit it."""

import logging
from collections.abc import Collection, Sequence

from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.admission import Limits
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.nn.build import equal_levels
from heterofl_flwr.nn.measure_moments import batch_norms

logger = logging.getLogger(__name__)


def log_summary(federation: Federation) -> None:
    """Log what the federation will do."""
    options, mix = federation.options, federation.mix
    logger.info("\t├──> Mix: %s, %s", mix, federation.assignment)
    for rate in mix.all_rates:
        parameters = federation.plan(rate).parameters
        logger.info("\t│\t├── Level %s: rate %g, %s parameters", level_name(rate), rate, f"{parameters:,}")
    for warning in find_equal_levels(federation):
        logger.warning(warning)
    logger.info("\t├──> Rows by label: %s", ", ".join(federation.rows) or "none")
    if options.privacy.noise and federation.rows and options.averaging.labels != "none":
        logger.warning(
            "epsilon does not cover which classes a client has: with labels=%r they decide which rows count; "
            "choose labels='none' (train.labels=none)",
            options.averaging.labels,
        )
    logger.info("\t└──> Slices: %s; uploads: %s", options.transfer.slice_rule, options.transfer.upload)


def find_equal_levels(federation: Federation) -> list[str]:
    """Return a warning for each group of the mix's levels that have the same model."""
    plans = {rate: federation.plan(rate) for rate in federation.mix.all_rates}
    largest, smallest = federation.mix.global_rate, federation.mix.rates[-1]
    if len(plans) == 1 or federation.personal:  # all sizes may share the same part
        return []
    if plans[smallest] == plans[largest]:
        return [
            f"build({smallest:g}) has the shapes of build({largest:g}), so all clients train the whole model: is its "
            f"first argument the rate, and do its widths follow from it?"
        ]
    return equal_levels(plans)


def count_releases(federation: Federation, rounds: range, *, simulated: bool) -> int:
    """Return how often the rounds up to the run's last one release a model or moments with noise, at most.

    On other machines clients may say what they can hold, and then an evaluation may be of every level.
    """
    options, last = federation.options, rounds.stop - 1
    evaluation, levels = options.evaluation, len(federation.mix.all_rates)
    asks = evaluation.static_norm and options.sampling.fraction_evaluate and batch_norms(federation.model)
    evaluated = [own for own in rounds if asks and not federation.personal and evaluation.due(own, last)]
    one = simulated or evaluation.nodes == "all"
    return len(rounds) + sum(1 if one and not evaluation.levels_due(own, last) else levels for own in evaluated)


def warn_of_names(limits: Limits, known: Collection[str]) -> None:
    """Warn of names and ids of nodes, to which the server gives levels or partitions, that no node has."""
    for option in ("levels", "partitions"):
        if absent := sorted(own for own in getattr(limits, option) if own not in known):
            logger.warning(
                "%s names %s, and no node that is there has such a registered name or id; correct it, unless it comes "
                "later (without node authentication, nodes have ids alone)",
                option,
                ", ".join(absent),
            )


def warn_of_mix(federation: Federation, server_round: int, node_ids: Sequence[int]) -> None:
    """Warn where the clients that are there, when a run begins, are too few or too small for the mix."""
    mix, clients, privacy = federation.mix, len(node_ids), federation.options.privacy
    known = [node_id for node_id in node_ids if node_id in federation.nodes]
    rates = [federation.largest_rate(server_round, node_id) for node_id in known] if len(known) == clients else []
    largest = max(rates, default=0.0)
    if 0 < largest < mix.rates[0] and federation.options.transfer.slice_rule == "prefix":
        whole, part = federation.whole.parameters, federation.plan(largest).parameters
        logger.warning(
            "no client that is there can train more than rate %g, and the mix %s has a model of rate %g: %d of its "
            "%d parameters are never trained; let larger clients take part, or begin the mix with that rate",
            largest,
            mix,
            mix.rates[0],
            whole - part,
            whole,
        )
    if privacy.noise and privacy.delta * clients >= 1:
        logger.warning(
            "delta is %g and there are %d clients: epsilon at a delta of 1 / %d or more promises nothing; choose a "
            "smaller one",
            privacy.delta,
            clients,
            clients,
        )
    if clients < len(mix.parts):
        logger.warning(
            "%d clients share the %d parts of the mix %s, so some level has none; start more nodes (simulated: "
            "flwr run . --federation-config 'num-supernodes=20 client-resources-num-cpus=1')",
            clients,
            len(mix.parts),
            mix,
        )
