"""A reply that can be changed in every way, also in those that Flower's own records refuse, and sent by either API."""

from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import Code, FitRes, Parameters, Status

OK = Status(Code.OK, "")


@dataclass
class Envelope:
    """What a reply holds."""

    arrays: dict[str, dict[str, Array]] = field(default_factory=dict)  # by the name of their record and their own
    config: dict[str, object] = field(default_factory=dict)
    metrics: dict[str, object] = field(default_factory=dict)
    more: dict[str, object] = field(default_factory=dict)  # further records of a message, or None to leave one out

    @classmethod
    def of(cls, message: Message) -> "Envelope":
        """Return what a message holds."""
        records = message.content.items()
        return cls(
            {name: dict(record) for name, record in records if isinstance(record, ArrayRecord)},
            dict(message.content.config_records.get("config", {})),
            dict(message.content.metric_records.get("metrics", {})),
        )

    @classmethod
    def of_fit(cls, arrays, number=0, metrics=()) -> "Envelope":
        """Return what ``fit`` of a ``NumPyClient`` answers; its arrays have numbers as names."""
        named = {str(place): Array(array) for place, array in enumerate(arrays)}
        return cls({"arrays": named}, dict(metrics), {"num-examples": number})

    @property
    def first(self) -> dict[str, Array]:
        """The arrays of the first record."""
        return next(iter(self.arrays.values()))

    @property
    def values(self) -> dict[str, Array]:
        """The arrays whose entries can be any numbers: those of the scales in int8."""
        return self.arrays.get("scales", self.first)

    def copy(self) -> "Envelope":
        """Return another envelope of the same arrays."""
        arrays = {name: dict(own) for name, own in self.arrays.items()}
        return Envelope(arrays, dict(self.config), dict(self.metrics), dict(self.more))

    def message(self, asked: Message) -> Message:
        """Return the reply to a message."""
        records = {name: _filled(ArrayRecord(), own) for name, own in self.arrays.items()}
        records |= {"config": _filled(ConfigRecord(), self.config), "metrics": _filled(MetricRecord(), self.metrics)}
        kept = {name: record for name, record in {**records, **self.more}.items() if record is not None}
        return Message(_filled(RecordDict(), kept), reply_to=asked)

    def fit_res(self) -> FitRes:
        """Return what the classic API's server gets, which has one mapping beside the arrays."""
        data = [array.data for own in self.arrays.values() for array in own.values()]
        metrics = {**self.config, **self.metrics}
        return FitRes(OK, Parameters(data, "numpy.ndarray"), metrics.pop("num-examples", 0), metrics)


def _filled(record, values):
    record.__dict__["_data"].update(values)  # past the checks of the record, which are the sender's own
    return record
