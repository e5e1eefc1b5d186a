"""The multiplications of a run's training, counted from its history and settings."""

import math
from collections.abc import Sequence
from itertools import accumulate

from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.grids.devices import PASSES
from heterofl_flwr.settings import Settings
from heterofl_flwr.settings.presets import EXCHANGES, client_settings
from simulations.published.runs import Run
from simulations.sweeps.work import facts_of, profile_at


def multiplications(run: Run, root: str = "") -> list[float]:
    """Return the multiplications (with addition) of all clients' training up to the end of each round.

    Clients have equally many examples here, which is so but for remainders and lost shards. Evaluation is left out.

    Parameters
    ----------
    run : Run
        The run; nothing but its history and settings is read.
    root : str
        Where data sets lie that are none of the paper's.
    """
    return list(accumulate(_of_round(run.settings, record, root) for record in run.records))


def _of_round(settings: Settings, record: RoundRecord, root: str) -> float:
    examples = facts_of(settings.data.name, root).train * settings.sample.fraction / max(len(record.rates), 1)
    return math.fsum(_of_client(client_settings(settings, who), rate, examples) for who, rate in record.rates.items())


def _of_client(settings: Settings, rate: float, examples: float) -> float:
    """Return what one client computes in a round."""
    one = _example(settings, rate)
    trained = settings.train.epochs * examples
    if settings.server.strategy not in EXCHANGES:
        return PASSES * one * trained
    # It also says what it makes of the seed batch, and learns from it beside its own data.
    distill = settings.distill
    own = min(settings.train.batch_size, examples)
    return one * (PASSES * (trained + distill.steps * (own + distill.seed_batch)) + distill.seed_batch)


def _example(settings: Settings, rate: float) -> float:
    """Return the multiplications of one example: with ordered dropout, the mean over the models of a batch."""
    rates: Sequence[float] = [rate]
    if settings.train.ordered_dropout:
        rates = [other for other in settings.mix.rates if other <= rate]
    return math.fsum(profile_at(settings, other).macs for other in rates) / len(rates)
