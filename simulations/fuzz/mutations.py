"""A reply that can be changed in every way, also in those that Flower's own records refuse, before it is sealed."""

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message.typeddict import TypedDict

Record = TypeVar("Record", bound=TypedDict[str, Any])

STYPE = "numpy.ndarray"


@dataclass
class Envelope:
    """What a reply holds, and to which message it answers."""

    arrays: dict[str, dict[str, Array]]  # arrays by the name of their record and their own
    config: dict[str, object]  # what the reply says
    metrics: dict[str, object]
    more: dict[str, object] = field(default_factory=dict)  # further records, or None to leave one out

    @classmethod
    def of(cls, message: Message) -> "Envelope":
        """Return what a good reply holds."""
        records = message.content.items()
        return cls(
            {name: dict(record) for name, record in records if isinstance(record, ArrayRecord)},
            dict(message.content.config_records.get("config", {})),
            dict(message.content.metric_records.get("metrics", {})),
        )

    def copy(self) -> "Envelope":
        """Return another envelope; the arrays' bytes are shared."""
        arrays = {name: {key: copy.copy(array) for key, array in own.items()} for name, own in self.arrays.items()}
        return Envelope(arrays, dict(self.config), dict(self.metrics), dict(self.more))

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


Mutation = Callable[[random.Random, Envelope], None]

NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, 10**400, -(10**400), 0.5, 1e300, -1e300, 1e-320, nan, inf, -inf, True, False)
OTHERS: tuple[object, ...] = (None, "", "1", "a" * 10_000, b"\x00", [], [1], [nan], ["x"], [True], {}, object())
ANY: tuple[object, ...] = (*NUMBERS, *OTHERS)
VALUES = (nan, inf, -inf, 3e38, -3e38, 1e16, 1e30)
DTYPES = ("f8", "f2", "i1", "i8", "u1", "?", "c8", ">f4", "U3", "S5", "M8[s]", "V7", "u8", "f4,i4")
HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (10**30,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-8,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': 7, 'shape': [8], }",
    "{'descr': [('a', '<f4', 99999999)], 'fortran_order': False, 'shape': (1,), }",
    "__import__('os').abort()",
    "(" * 3000,
    "[" * 90 + "]" * 90,
    "{'descr': '<f4'}",
    "",
    "\x00" * 200,
    "9" * 9000,
)


def names(draw: random.Random, envelope: Envelope) -> None:
    arrays = envelope.some_arrays()
    name = draw.choice(list(arrays))
    what = draw.randrange(5)
    if what == 0:
        del arrays[name]
    elif what == 1:
        arrays[draw.choice(["", "x" * 5000, name + "\x00", name.upper(), "../../etc/passwd", "\N{SNOWMAN}"])] = (
            arrays.pop(name)
        )
    elif what == 2:
        arrays |= {f"junk{number}": arrays[name] for number in range(draw.choice([1, 10, 2000]))}
    elif what == 3:
        arrays.clear()
    else:
        other = draw.choice(list(arrays))
        arrays[name], arrays[other] = arrays[other], arrays[name]


def shapes(draw: random.Random, envelope: Envelope) -> None:
    name, values = _one(draw, envelope)
    change = draw.choice(
        [
            values[None],
            values.reshape(-1)[:1],
            values[..., None],
            np.zeros((), values.dtype),
            np.zeros((0, *values.shape), values.dtype),
            np.stack([values, values]),
            values.reshape(-1)[: values.size // 2],
            np.ones((1,) * values.ndim, values.dtype),
        ]
    )
    envelope.some_arrays()[name] = Array(np.ascontiguousarray(change))


def claims(draw: random.Random, envelope: Envelope) -> None:
    """Send the slice of another rate: every hidden axis longer or shorter."""
    longer = draw.choice([0.25, 0.5, 2, 4])
    for name, array in envelope.some_arrays().items():
        values = array.numpy()
        shape = [max(int(size * longer), 1) if size == 8 else size for size in values.shape]
        envelope.some_arrays()[name] = Array(np.zeros(shape, values.dtype))


def dtypes(draw: random.Random, envelope: Envelope) -> None:
    name, values = _one(draw, envelope)
    dtype = np.dtype(draw.choice(DTYPES))
    envelope.some_arrays()[name] = Array(np.zeros(values.shape, dtype))


def entries(draw: random.Random, envelope: Envelope) -> None:
    """Put entries in that are not finite, or huge; int8 has its scales for that."""
    record = envelope.arrays.get("scales", envelope.some_arrays())
    name = draw.choice(list(record))
    values = record[name].numpy().copy()
    pool = VALUES if values.dtype.kind == "f" else (-1, 1, 2**20)
    with np.errstate(all="ignore"):
        values.reshape(-1)[draw.randrange(values.size)] = np.array(draw.choice(pool)).astype(values.dtype)
    record[name] = Array(values)


def far(draw: random.Random, envelope: Envelope) -> None:
    """Go further from the slice than the bound, with every entry plausible."""
    factor = draw.uniform(20, 1000)
    record = envelope.arrays.get("scales", envelope.some_arrays())
    for name, array in record.items():
        values = array.numpy()
        record[name] = Array((values + factor).astype(values.dtype))


def octets(draw: random.Random, envelope: Envelope) -> None:
    """Change the bytes of an array."""
    name, _ = _one(draw, envelope)
    array = envelope.some_arrays()[name]
    data = bytearray(array.data)
    what = draw.randrange(6)
    if what == 0:
        for _ in range(draw.randrange(1, 20)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif what == 1:
        del data[draw.randrange(len(data)) :]
    elif what == 2:
        data += draw.randbytes(draw.randrange(1, 100))
    elif what == 3:
        data[:] = draw.randbytes(draw.randrange(0, 300))
    elif what == 4:
        data[:] = draw.choice(
            [b"", b"\x80\x04.", b"PK\x03\x04", b"\x93NUMPY", b"\x93NUMPY\x09\x09", b"\x93NUMPY\x02\x00"]
        )
    else:
        data[6:10] = draw.randbytes(4)  # the version, and the length of the header
    envelope.some_arrays()[name] = raw(bytes(data), array)


def headers(draw: random.Random, envelope: Envelope) -> None:
    name, values = _one(draw, envelope)
    header = (draw.choice(HEADERS) + "\n").encode("latin1")
    version, size = draw.choice([(b"\x01\x00", 2), (b"\x02\x00", 4), (b"\x03\x00", 4)])
    data = b"\x93NUMPY" + version + len(header).to_bytes(size, "little") + header + values.tobytes()
    envelope.some_arrays()[name] = raw(data, envelope.some_arrays()[name])


def stypes(draw: random.Random, envelope: Envelope) -> None:
    name, _ = _one(draw, envelope)
    array = envelope.some_arrays()[name]
    envelope.some_arrays()[name] = Array(
        array.dtype, array.shape, draw.choice(["", "pickle", "torch", "x" * 999]), array.data
    )


def labels_on_arrays(draw: random.Random, envelope: Envelope) -> None:
    """Lie in what Flower writes beside an array, which the server does not read: this is harmless."""
    name, _ = _one(draw, envelope)
    array = envelope.some_arrays()[name]
    envelope.some_arrays()[name] = Array("object", (10**9,) * draw.randrange(9), STYPE, array.data)


def sizes(draw: random.Random, envelope: Envelope) -> None:
    """Be many times larger than the slice."""
    name, values = _one(draw, envelope)
    envelope.some_arrays()[name] = Array(np.zeros(values.size * draw.choice([20, 200, 2000]) + 2000, values.dtype))


def records(draw: random.Random, envelope: Envelope) -> None:
    kind = draw.choice([ArrayRecord, ConfigRecord, MetricRecord])
    name = draw.choice(["arrays", "changes", "scales", "config", "metrics", "moments", "posteriors", "", "x" * 999])
    if draw.random() < 0.5:
        envelope.more[name] = None if name in ("config", "metrics") else kind()
        envelope.arrays.pop(name, None)
    else:
        envelope.more[name] = kind()


def forms(draw: random.Random, envelope: Envelope) -> None:
    envelope.config["upload"] = draw.choice(["float32", "float16", "int8", "int4", *OTHERS])


def labels(draw: random.Random, envelope: Envelope) -> None:
    pool = draw.choice([NUMBERS, OTHERS, ANY, (0, 1, 2, 3), (3, 4), (-1, 0), (True, False), (1.0, 2.0)])
    envelope.config["labels"] = draw.choice(
        [
            [draw.choice(pool) for _ in range(draw.choice([0, 1, 2, 4, 5, 5000]))],
            draw.choice(ANY),
            [[0, 1], [1, 2]],
            tuple(range(4)),
            "0,1",
            range(4),
        ]
    )


def examples(draw: random.Random, envelope: Envelope) -> None:
    envelope.metrics["num-examples"] = draw.choice([*ANY, 10_000_001, 10_000_000])


def metrics(draw: random.Random, envelope: Envelope) -> None:
    what = draw.randrange(4)
    if what == 0:
        envelope.metrics["loss"] = draw.choice(ANY)
    elif what == 1:
        envelope.metrics |= {f"m{number}": draw.choice(ANY) for number in range(draw.choice([5, 99, 5000]))}
    elif what == 2:
        envelope.metrics[draw.choice(["", "x" * 5000, "\x1b[2J", "a\nb", "loss/1e-300", "loss/nan", "coverage"])] = 1.0
    else:
        envelope.metrics.clear()


def capacities(draw: random.Random, envelope: Envelope) -> None:
    envelope.config["capacity"] = draw.choice([*ANY, "a", 1.5, 1e-300, 0.25])


def schemas(draw: random.Random, envelope: Envelope) -> None:
    envelope.config["heterofl-schema"] = draw.choice([*ANY, 2, "1"])


def keys(draw: random.Random, envelope: Envelope) -> None:
    """Say more than is asked: this is harmless."""
    envelope.config |= {f"{draw.choice('abc')}{number}": draw.choice(ANY) for number in range(draw.choice([1, 1000]))}


def nothing(draw: random.Random, envelope: Envelope) -> None:
    """Leave the reply as it is: it must count."""


MUTATIONS: Mapping[str, Mutation] = {
    own.__name__.replace("_", " "): own
    for own in (
        nothing,
        names,
        shapes,
        claims,
        dtypes,
        entries,
        far,
        octets,
        headers,
        stypes,
        labels_on_arrays,
        sizes,
        records,
        forms,
        labels,
        examples,
        metrics,
        capacities,
        schemas,
        keys,
    )
}


def _one(draw: random.Random, envelope: Envelope) -> tuple[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]:
    """Return one of an envelope's arrays, with its name."""
    name = draw.choice(list(envelope.some_arrays()))
    return name, envelope.some_arrays()[name].numpy()
