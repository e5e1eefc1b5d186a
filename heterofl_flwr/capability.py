"""What a node says of itself: which part of the data it has, and how large a model it can hold.

Its own config names a level, or says ``level="auto"``: then it measures itself, once, and keeps what it found.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict

from heterofl_flwr import messages
from heterofl_flwr.core.levels import LEVELS, rate_of
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.training.capacity import Trial, largest_rate

logger = logging.getLogger(__name__)

AUTO = "auto"
ROUND_SECONDS = 60.0
"""For how long a node that measures itself trains in a round at the most, unless its config says otherwise."""

RECORD = "capacity"
"""The record of a node's state with what it measured; without one, that is kept in a file."""


def answer_capability(message: Message, context: Context, trial: Callable[[], Trial] | None = None) -> Message:
    """Return what this node can hold and which part of the data it has.

    ``trial`` gives what a node tries where its config says ``level="auto"``; it is called only then.
    """
    reported = read_capability(context)
    if measures_itself(context):
        if trial is None:
            raise ConfigError(
                "the node config has level='auto', but this app gives no data to try: pass data to answer_queries, or "
                "name a level"
            )
        # Those of the server's mix, so what a node proposes is never above them.
        rates = messages.read_rates(messages.read_config(message), list(LEVELS.values()))
        reported[messages.CAPACITY] = _measure(context, trial(), rates)
    return Message(RecordDict({messages.CONFIG: messages.new_config(reported)}), reply_to=message)


def read_capability(context: Context) -> dict[str, object]:
    """Return what a node's own config says: level or rate, and which part of the data it has."""
    node = context.node_config
    if messages.NODE_LEVEL in node and messages.NODE_RATE in node:
        raise ConfigError("the node config has both level and rate: keep one")
    reported: dict[str, object] = {}
    capacity = node.get(messages.NODE_LEVEL, node.get(messages.NODE_RATE))
    if capacity is not None and not measures_itself(context):
        reported[messages.CAPACITY] = rate_of(capacity)
    for key, own in (
        (messages.PARTITION, messages.NODE_PARTITION),
        (messages.NUM_PARTITIONS, messages.NODE_NUM_PARTITIONS),
    ):
        if own in node:
            value = node[own]
            if isinstance(value, str) and value.isdecimal():
                value = int(value)  # Flower's start_simulation writes numbers as text
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"the node config has {own}={value!r}; expected a whole number")
            reported[key] = value
    return reported


def measures_itself(context: Context) -> bool:
    """Whether a node's config leaves its level to a measurement."""
    return context.node_config.get(messages.NODE_LEVEL) == AUTO


def _measure(context: Context, trial: Trial, rates: Sequence[float]) -> float:
    """Return the largest rate that this node can train; it measures again only if what that depends on has changed."""
    budget = context.node_config.get(messages.NODE_SECONDS, ROUND_SECONDS)
    if isinstance(budget, bool | str) or not (math.isfinite(budget) and budget > 0):
        raise ConfigError(f"the node config has {messages.NODE_SECONDS}={budget!r}; expected a number above 0")
    depends_on = f"{budget:g} s; {trial.key(rates)}"
    named = context.node_config.get(messages.NODE_CAPACITY)
    path, record = Path(str(named)) if named is not None else None, context.state.get(RECORD)
    found = _read(path) if path else dict(record) if isinstance(record, ConfigRecord) else {}
    if found.get("of") == depends_on and found.get("rate") in rates:
        return rate_of(found["rate"])  # type: ignore[arg-type]
    rate = largest_rate(trial, rates, budget)
    if path is None:
        context.state[RECORD] = ConfigRecord({"of": depends_on, "rate": rate})
        return rate
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"of": depends_on, "rate": rate}), encoding="utf-8")
    except OSError as error:  # the node can train all the same
        logger.warning("%s cannot be written (%s), so this node will measure itself again", path, error)
    return rate


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s), so this node measures itself anew", path, error)
        return {}
    return found if isinstance(found, dict) else {}
