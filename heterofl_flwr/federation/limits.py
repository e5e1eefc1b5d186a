"""Limits of what a client may have and answer, how many replies a round needs, and the checks of both."""

import logging
import math
from collections.abc import Iterable
from fractions import Fraction
from reprlib import repr as shown
from typing import Annotated, Literal

from pydantic import Field, Strict

from heterofl_flwr.errors import ReplyError
from heterofl_flwr.federation.evaluation import SHARES, is_share
from heterofl_flwr.federation.level_table import Levels
from heterofl_flwr.groups import Count, Natural, NotNegative, group

MinReplies = Count | Annotated[float, Strict(), Field(gt=0, lt=1)] | Literal["auto"]
"""How many good replies a round needs: a number, a share of the clients that are needed, or half of them."""

REPLIES = "a whole number of 1 or more, or a share between 0 and 1"
"""What is expected beside ``auto``."""


def least_replies(least: MinReplies, needed: int) -> int:
    """Return how many good replies a round needs, of which this many would be all."""
    if isinstance(least, int):
        return least
    share = Fraction(1, 2) if least == "auto" else Fraction(str(least))
    return max(math.ceil(share * needed), 1)


logger = logging.getLogger(__name__)

LARGEST_METRIC = 1e30
MOST_METRICS = 100
LONGEST_NAME = 100


@group
class Limits:
    """What a client may have and answer at most."""

    norm_bound: NotNegative = 0.0
    """L2 norm of what a reply changes of the slice that its client was sent; a reply of a larger one is rejected, not
    clipped. 0 for none, but where replies cross a SuperLink: there it is ten times the norm of the global model.
    """
    examples: Annotated[int, Strict(), Field(ge=1, le=1_000_000_000)] = 10_000_000
    """Number of examples that a client may count. With weights="examples", set it near the largest client's."""
    examples_ratio: NotNegative = 10.0
    """In means of metrics a client counts at most this many times the examples of the median client; 0 for no bound.
    Parameters count in full with weights="examples", as in FedAvg: for them there is examples.
    """
    refusals: Natural = 0
    """A client is not drawn any more after this many rejected replies in a row; 0 for never."""
    levels: Annotated[Levels, "Levels(...)"] = Levels()
    """Which clients may have which levels; comes before what they report."""


def read_number(value: object, most: int, sender: str, key: str = "num-examples") -> int:
    """Return a number of examples; refuse anything else, or more of them."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ReplyError(
            f"{sender} sent {shown(value)} as {key}, expected a whole number from 0 up to {most:,} "
            f"(Limits(examples=...), server.max-examples)"
        )
    return value


def read_numbers(metrics: Iterable[tuple[str, object]], sender: str) -> dict[str, float]:
    """Return the numbers among metrics; one that is out of its bounds becomes NaN, which no mean counts.

    Raises
    ------
    ReplyError
        If there are too many, or if a name is no short line of text: the record of a run keeps each.
    """
    found = {name: value for name, value in metrics if isinstance(value, int | float) and not isinstance(value, bool)}
    wrong = [name for name in found if len(name) > LONGEST_NAME or not name.isprintable()]
    if len(found) > MOST_METRICS or wrong:
        what = f"{len(found)} metrics" if not wrong else f"a metric named {shown(wrong[0])}"
        raise ReplyError(
            f"{sender} sent {what}, expected up to {MOST_METRICS} with names of up to {LONGEST_NAME} printable letters"
        )
    unusable = {
        name: value
        for name, value in found.items()
        if not (0 <= value <= 1 if is_share(name) else abs(value) <= LARGEST_METRIC)
    }
    if unusable:
        logger.warning(
            "%s sent %s, which counts in no mean: expected 0 to 1 of %s, and finite numbers up to %g of others",
            sender,
            shown(unusable),
            ", ".join(SHARES),
            LARGEST_METRIC,
        )
    return {name: math.nan if name in unusable else float(value) for name, value in found.items()}
