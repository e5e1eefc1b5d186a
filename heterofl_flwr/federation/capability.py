"""Capabilities of nodes, and the admission of new nodes."""

import logging
from collections.abc import Mapping
from typing import Annotated

from heterofl_flwr.common.errors import Fault, RoundError, counted, name_faults
from heterofl_flwr.common.options import Count, Natural, check, group
from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.federation.sampling import MinReplies, least_replies

logger = logging.getLogger(__name__)

_RateOrNone = Annotated[float | None, check(lambda rate: rate is None or exact_rate(rate)), "a rate"]


@group
class Capability:
    """Data partition of a client, the largest rate that it can hold, and the server's limit on this rate."""

    capacity: _RateOrNone = None  # the largest rate that the client can hold; None: any rate
    limit: float = 1.0  # the largest rate that the server allows this client
    partition: Annotated[Natural | None, "an integer of 0 or more"] = None  # index of the client's part of the data
    num_partitions: Annotated[Count | None, "an integer of 1 or more"] = None

    @property
    def holds(self) -> float | None:
        """The largest rate that the client may train at; None for any rate."""
        if self.capacity is None and self.limit == 1:
            return None
        return self.limit if self.capacity is None else min(self.capacity, self.limit)


Answers = Mapping[int, Capability | Fault]
"""For each new client, by node id: the capability that it reports, or a fault if it gave no usable answer."""


def check_faults(faults: Mapping[str, str], *, new: int, total: int, min_replies: MinReplies, mix: Mix) -> None:
    """Warn of unusable answers; raise ``RoundError`` if too few clients have a known capability.

    If the smallest rate of the mix is the global rate, no capability needs to be known. ``faults`` has the
    reason for each client with an unusable answer. ``new`` and ``total`` are the numbers of new and of all clients.
    """
    usable, smallest = total - len(faults), mix.rates[-1]
    least = min(least_replies(min_replies, total), total)
    if usable < least and smallest < mix.global_rate:
        raise RoundError(
            f"{name_faults('', faults)}; so the rate that a node can hold is known for {usable} of "
            f"{counted(total, 'node')}, expected at least {least} (min_replies or sample.min-replies, which "
            f"is {min_replies}): correct these errors, because all other nodes would train at the smallest "
            f"rate, {smallest:g}"
        )
    if faults:
        logger.warning(
            "%d of %s gave no usable answer to the capability query, and get the smallest rate, %g: %s",
            len(faults),
            counted(new, "new node"),
            smallest,
            name_faults("", faults),
        )
