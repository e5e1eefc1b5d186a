"""Who is let in at which level: the server's table of levels, and nodes that say nothing usable of themselves."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from heterofl_flwr.core.levels import Mix, level_name, rate_of
from heterofl_flwr.errors import ConfigError, ReplyError, RoundError, name_faults
from heterofl_flwr.federation.nodes import Capability, MinReplies, least_replies

logger = logging.getLogger(__name__)

Answers = Mapping[int, Capability | ReplyError]
"""What new clients say of themselves, by node, or why that is not usable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Which levels clients may have; comes before what they report.

    Attributes
    ----------
    table
        The level, or the rate, of a client by its registered name or by its node id as text. Neither is the client's
        own word. Such a client has this level; what it reports later can only lower it.
    others
        The largest level, or rate, that clients which are not in the table may have.
    partitions
        The partition of a client by its name or id in the same way. No other client gets one of these numbers.
    """

    table: Mapping[str, str | float] = field(default_factory=dict)
    others: str | float = 1.0
    partitions: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = []
        for who, level in (*self.table.items(), ("others", self.others)):
            try:
                rate_of(level)
            except ConfigError as error:
                faults.append(f"{who}: {error}")
        if len(set(self.partitions.values())) < len(self.partitions) or min(self.partitions.values(), default=0) < 0:
            faults.append(f"partitions are {dict(self.partitions)}; expected numbers from 0 up, each once")
        if faults:
            raise ConfigError("levels: " + "; ".join(faults))

    def check(self, mix: Mix, assignment: str) -> None:
        """Refuse levels that a mix has no model for."""
        wide = [who for who, level in self.table.items() if rate_of(level) > mix.global_rate]
        faults = [f"{', '.join(wide)} above the mix's largest level, {level_name(mix.global_rate)}"] if wide else []
        if assignment == "dynamic":
            everyone = (*self.table.items(), ("others", self.others))
            narrow = [who for who, level in everyone if rate_of(level) < mix.rates[-1]]
            if narrow:
                faults.append(f"{', '.join(narrow)} below the mix's smallest level, {level_name(mix.rates[-1])}")
        if faults:
            raise ConfigError(f"levels: {' and '.join(faults)}: expected levels within {mix}, or another mix")

    def applied(self, said: Capability, name: str, node_id: str) -> Capability:
        """Return what a client may hold, from what it says of itself, its registered name and its id."""
        key = name if name in self.table else node_id
        limit = rate_of(self.table.get(key, self.others))
        bound = self.partitions.get(name, self.partitions.get(node_id))
        if bound is None and said.partition in self.partitions.values():
            logger.warning("node %s says partition %s, which is another node's", name or node_id, said.partition)
            said = replace(said, partition=None)
        elif bound is not None:
            said = replace(said, partition=bound)
        changed = replace(said, capacity=limit if key in self.table else said.capacity, limit=limit)
        if said.capacity not in (None, changed.holds):
            logger.warning(
                "node %s gets rate %g by the server's levels, in place of %g",
                name or node_id,
                changed.holds,
                said.capacity,
            )
        return changed


def admit(
    answers: Answers, names: Mapping[int, str], levels: Levels, silent: Capability, check: Callable[[Capability], None]
) -> tuple[dict[int, Capability], dict[str, str]]:
    """Return what new clients may hold, by node, and what is wrong with their answers, by name or id.

    One of which nothing is usable may hold what a ``silent`` one does; ``check`` raises for what it reports.
    """
    admitted, faults = {}, {}
    for node_id, answer in answers.items():
        name, own_id = names.get(node_id, ""), str(node_id)
        try:
            if isinstance(answer, ReplyError):
                raise answer
            admitted[node_id] = levels.applied(answer, name, own_id)
            check(admitted[node_id])
        except ReplyError as error:
            if not {name, own_id} & levels.table.keys():  # of those it is known
                faults[name or own_id] = str(error)
            admitted[node_id] = levels.applied(silent, name, own_id)
    return admitted, faults


def check_faults(faults: Mapping[str, str], *, new: int, present: int, wanted: MinReplies, mix: Mix) -> None:
    """Warn of new clients that do not say what they can hold; fail if fewer do than a round needs replies.

    The run would look well then, and train small models alone.
    """
    known, smallest = present - len(faults), mix.rates[-1]
    least = min(least_replies(wanted, present), present)
    if known < least and smallest < mix.global_rate:
        raise RoundError(
            f"{name_faults('node', faults)}; so it is known of {known} of {present} nodes what they can hold, "
            f"expected at least {least} (min_replies or sample.min-replies, which is {wanted}): mend what they "
            f"fail with, as all others would train at the smallest rate, {smallest:g}"
        )
    if faults:
        logger.warning(
            "%d of %d new nodes gave no usable answer as to what they can hold; without one the rate is the "
            "smallest, %g: %s",
            len(faults),
            new,
            smallest,
            name_faults("node", faults),
        )
