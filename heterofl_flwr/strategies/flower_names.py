"""The arguments of Flower's own ``FedAvg`` strategies, and what they are here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, MetricRecord, RecordDict

from heterofl_flwr import messages as wire
from heterofl_flwr.errors import ConfigError, check_fields

MetricsFn = Callable[[list[RecordDict], str], MetricRecord]
"""From the records of replies and the key of their weights to one record of metrics."""

CLASSIC: Mapping[str, str] = {
    "fraction_fit": "fraction_train",
    "min_fit_clients": "min_train_nodes",
    "min_evaluate_clients": "min_evaluate_nodes",
    "min_available_clients": "min_available_nodes",
}
"""From an argument of the classic ``FedAvg`` to the option that it is here."""

NOT_CLASSIC: Mapping[str, str] = {
    "train_metrics_aggr_fn": "use fit_metrics_aggregation_fn",
    "evaluate_metrics_aggr_fn": "use evaluate_metrics_aggregation_fn",
    "weighted_by_key": "it weights by num_examples, so leave it",
    "arrayrecord_key": "it has no records, so leave it",
    "configrecord_key": "it has no records, so leave it",
    "devices": "simulated devices go around a grid, so use heterofl_flwr.HeteroFL",
}
"""From an option that the classic API has no place for to what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The names of records in messages, and of the weight among metrics."""

    weighted_by_key: str = wire.NUM_EXAMPLES
    arrayrecord_key: str = wire.ARRAYS
    configrecord_key: str = wire.CONFIG

    def __post_init__(self) -> None:
        """Refuse names that other records of our messages have."""
        arrays, config = self.arrayrecord_key, self.configrecord_key
        others = ", ".join(sorted(wire.RECORDS))
        check_fields(
            self,
            (
                ("weighted_by_key", bool(self.weighted_by_key), "a name"),
                ("arrayrecord_key", arrays == wire.ARRAYS or _free(arrays), f"a name other than {others}"),
                ("configrecord_key", config == wire.CONFIG or _free(config), f"a name other than {others}"),
                ("configrecord_key", config != arrays, "another name than arrayrecord_key"),
            ),
        )

    def put_on(self, messages: Iterable[Message]) -> None:
        """Rename the records of messages; clients know them by their kind."""
        for message in messages:
            for own, new in ((wire.ARRAYS, self.arrayrecord_key), (wire.CONFIG, self.configrecord_key)):
                if own != new:
                    message.content[new] = message.content.pop(own)


def classic_options(options: Mapping[str, Any], given: Mapping[str, object]) -> dict[str, Any]:
    """Return a strategy's options with the classic arguments that were given among them, under our names."""
    for name in options.keys() & NOT_CLASSIC.keys():
        raise ConfigError(f"the classic API has no {name}: {NOT_CLASSIC[name]}")
    named = {CLASSIC[name]: value for name, value in given.items() if value is not None}
    for name, own in CLASSIC.items():
        if own in named and own in options:
            raise ConfigError(f"{name} and {own} are the same option: give one of them")
    return {**options, **named}


def _free(name: str) -> bool:
    return bool(name) and name not in wire.RECORDS
