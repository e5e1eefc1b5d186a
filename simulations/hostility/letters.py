"""A reply that can be changed in every way, also in those that Flower's own records refuse, before it is sealed."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message.typeddict import TypedDict

Record = TypeVar("Record", bound=TypedDict[str, Any])

STYPE = "numpy.ndarray"


@dataclass
class Letter:
    """What a reply holds, and to which message it answers.

    Attributes
    ----------
    arrays
        Arrays by the name of their record and their own.
    config, metrics
        What the reply says.
    more
        Further records, or None to leave one out.
    """

    arrays: dict[str, dict[str, Array]]
    config: dict[str, object]
    metrics: dict[str, object]
    more: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, message: Message) -> "Letter":
        """Return what a good reply holds."""
        records = message.content.items()
        return cls(
            {name: dict(record) for name, record in records if isinstance(record, ArrayRecord)},
            dict(message.content.config_records.get("config", {})),
            dict(message.content.metric_records.get("metrics", {})),
        )

    def copy(self) -> "Letter":
        """Return another letter; the arrays' bytes are shared."""
        arrays = {name: {key: copy.copy(array) for key, array in own.items()} for name, own in self.arrays.items()}
        return Letter(arrays, dict(self.config), dict(self.metrics), dict(self.more))

    def some_arrays(self) -> dict[str, Array]:
        """Return the arrays of the first record."""
        return next(iter(self.arrays.values()))

    def seal(self, asked: Message) -> Message:
        """Return the reply to a message."""
        records: dict[str, object] = {name: _filled(ArrayRecord(), own) for name, own in self.arrays.items()}
        records["config"] = _filled(ConfigRecord(), self.config)
        records["metrics"] = _filled(MetricRecord(), self.metrics)
        records |= self.more
        kept = {name: record for name, record in records.items() if record is not None}
        return Message(_filled(RecordDict(), kept), reply_to=asked)


def _filled(record: Record, values: Mapping[str, object]) -> Record:
    # Past the checks of the record, which are the sender's own.
    record.__dict__["_data"].update(values)
    return record


def raw(data: bytes, like: Array) -> Array:
    """Return an array of other bytes that claims to be like this one."""
    return Array(like.dtype, like.shape, STYPE, data)
