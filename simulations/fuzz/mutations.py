"""A reply that can be changed in every way, also in those that Flower's own records refuse, before it is sealed."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from simulations.flower_internals import TypedDict

Record = TypeVar("Record", bound=TypedDict[str, Any])


@dataclass
class Envelope:
    """What a reply holds."""

    arrays: dict[str, dict[str, Array]]  # arrays by the name of their record and their own
    config: dict[str, object]
    metrics: dict[str, object]
    more: dict[str, object] = field(default_factory=dict)  # further records, or None to leave one out

    @classmethod
    def of(cls, message: Message) -> "Envelope":
        records = message.content.items()
        return cls(
            {name: dict(record) for name, record in records if isinstance(record, ArrayRecord)},
            dict(message.content.config_records.get("config", {})),
            dict(message.content.metric_records.get("metrics", {})),
        )

    def copy(self) -> "Envelope":
        """Return another envelope of the same arrays."""
        arrays = {name: dict(own) for name, own in self.arrays.items()}
        return Envelope(arrays, dict(self.config), dict(self.metrics))

    @property
    def first(self) -> dict[str, Array]:
        """The arrays of the first record."""
        return next(iter(self.arrays.values()))

    @property
    def values(self) -> dict[str, Array]:
        """The arrays whose entries can be any numbers: those of the scales in int8."""
        return self.arrays.get("scales", self.first)

    def seal(self, asked: Message) -> Message:
        """Return the reply to a message."""
        records: dict[str, object] = {name: _filled(ArrayRecord(), own) for name, own in self.arrays.items()}
        records |= {"config": _filled(ConfigRecord(), self.config), "metrics": _filled(MetricRecord(), self.metrics)}
        kept = {name: record for name, record in {**records, **self.more}.items() if record is not None}
        return Message(_filled(RecordDict(), kept), reply_to=asked)


def _filled(record: Record, values: Mapping[str, object]) -> Record:
    # Past the checks of the record, which are the sender's own.
    record.__dict__["_data"].update(values)
    return record


Mutation = Callable[[random.Random, Envelope], None]

NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, 10**400, -(10**400), 0.5, 1e300, -1e300, 1e-320, nan, inf, -inf, True, False)
OTHERS: tuple[object, ...] = (None, "", "1", "a" * 10_000, b"\x00", [], [1], [nan], ["x"], [True], {}, object())
ANY: tuple[object, ...] = (*NUMBERS, *OTHERS)
VALUES = (nan, inf, -inf, 3e38, -3e38, 1e16, 1e30)
DTYPES = ("f8", "f2", "i1", "i8", "u1", "?", "c8", ">f4", "U3", "S5", "M8[s]", "V7", "u8", "f4,i4")
MAGIC = b"\x93NUMPY"
PIECES = (b"", b"\x00", b"nan", b"inf", b",", b"\n", *b'" { {} [ [[[[ -1 1e999 {"a":1e999} null \xff\xfe'.split())
PIECES += (b"9" * 400, b"[[[[" * 9000, b"\x80\x04.", b"PK\x03\x04", MAGIC, MAGIC + b"\x09\x09", MAGIC + b"\x02\x00")
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


def damage(draw: random.Random, good: bytes) -> bytes:
    """Return bytes of which some are removed, or have others in their place or between them."""
    data = bytearray(good)
    for _ in range(draw.randrange(1, 4)):
        first = draw.choice([0, draw.randrange(len(data) + 1)])
        last = min(draw.choice([first, first + 1, first + 4, first + draw.randrange(50), len(data)]), len(data))
        data[first:last] = draw.choice([b"", draw.randbytes(last - first), draw.randbytes(50), draw.choice(PIECES)])
    return bytes(data)


def _array(change: Callable[[random.Random, Array], Array]) -> Mutation:
    """Return the mutation that puts another array in the place of one."""

    def mutate(draw: random.Random, envelope: Envelope) -> None:
        name = draw.choice(list(envelope.first))
        envelope.first[name] = change(draw, envelope.first[name])

    return mutate


def _says(record: str, key: str, *values: object) -> Mutation:
    """Return the mutation that writes one of some values."""
    return lambda draw, envelope: getattr(envelope, record).update({key: draw.choice(values)})


def _shape(draw: random.Random, array: Array) -> Array:
    values = array.numpy()
    shapes: Sequence[np.ndarray[Any, Any]] = [
        values[None],
        values.reshape(-1)[:1],
        values[..., None],
        np.zeros((), values.dtype),
        np.zeros((0, *values.shape), values.dtype),
        np.stack([values, values]),
        values.reshape(-1)[: values.size // 2],
        np.ones((1,) * values.ndim, values.dtype),
    ]
    return Array(np.ascontiguousarray(draw.choice(shapes)))


def _header(draw: random.Random, array: Array) -> Array:
    header = (draw.choice(HEADERS) + "\n").encode("latin1")
    version, size = draw.choice([(b"\x01\x00", 2), (b"\x02\x00", 4), (b"\x03\x00", 4)])
    data = MAGIC + version + len(header).to_bytes(size, "little") + header + array.numpy().tobytes()
    return Array(array.dtype, array.shape, array.stype, data)


def _names(draw: random.Random, envelope: Envelope) -> None:
    arrays = envelope.first
    name, what = draw.choice(list(arrays)), draw.randrange(5)
    if what == 0:
        del arrays[name]
    elif what == 1:
        other = draw.choice(["", "x" * 5000, name + "\x00", name.upper(), "../../etc/passwd", "\N{SNOWMAN}"])
        arrays[other] = arrays.pop(name)
    elif what == 2:
        arrays |= {f"junk{number}": arrays[name] for number in range(draw.choice([1, 10, 2000]))}
    elif what == 3:
        arrays.clear()
    else:
        other = draw.choice(list(arrays))
        arrays[name], arrays[other] = arrays[other], arrays[name]


def _claims(draw: random.Random, envelope: Envelope) -> None:
    """Send the slice of another rate: every hidden axis longer or shorter."""
    longer = draw.choice([0.25, 0.5, 2, 4])
    for name, array in envelope.first.items():
        values = array.numpy()
        shape = [max(int(size * longer), 1) if size == 8 else size for size in values.shape]
        envelope.first[name] = Array(np.zeros(shape, values.dtype))


def _entries(draw: random.Random, envelope: Envelope) -> None:
    """Put entries in that are not finite, or huge."""
    name = draw.choice(list(envelope.values))
    values = envelope.values[name].numpy().copy()
    pool = VALUES if values.dtype.kind == "f" else (-1, 1, 2**20)
    with np.errstate(all="ignore"):
        values.reshape(-1)[draw.randrange(values.size)] = np.array(draw.choice(pool)).astype(values.dtype)
    envelope.values[name] = Array(values)


def _far(draw: random.Random, envelope: Envelope) -> None:
    """Go further from the slice than the bound, with every entry plausible."""
    factor = draw.uniform(20, 1000)
    for name, array in envelope.values.items():
        values = array.numpy()
        envelope.values[name] = Array((values + factor).astype(values.dtype))


def _records(draw: random.Random, envelope: Envelope) -> None:
    kind = draw.choice([ArrayRecord, ConfigRecord, MetricRecord])
    name = draw.choice(["arrays", "changes", "scales", "config", "metrics", "moments", "posteriors", "", "x" * 999])
    instead = draw.random() < 0.5
    envelope.more[name] = None if instead and name in ("config", "metrics") else kind()
    if instead:
        envelope.arrays.pop(name, None)


def _labels(draw: random.Random, envelope: Envelope) -> None:
    pool = draw.choice([NUMBERS, OTHERS, ANY, (0, 1, 2, 3), (3, 4), (-1, 0), (True, False), (1.0, 2.0)])
    some = [draw.choice(pool) for _ in range(draw.choice([0, 1, 2, 4, 5, 5000]))]
    one = draw.choice(ANY)
    envelope.config["labels"] = draw.choice([some, one, [[0, 1], [1, 2]], tuple(range(4)), "0,1", range(4)])


def _metrics(draw: random.Random, envelope: Envelope) -> None:
    what = draw.randrange(4)
    if what == 0:
        envelope.metrics["loss"] = draw.choice(ANY)
    elif what == 1:
        envelope.metrics |= {f"m{number}": draw.choice(ANY) for number in range(draw.choice([5, 99, 5000]))}
    elif what == 2:
        envelope.metrics[draw.choice(["", "x" * 5000, "\x1b[2J", "a\nb", "loss/1e-300", "loss/nan", "coverage"])] = 1.0
    else:
        envelope.metrics.clear()


def _keys(draw: random.Random, envelope: Envelope) -> None:
    envelope.config |= {f"{draw.choice('abc')}{number}": draw.choice(ANY) for number in range(draw.choice([1, 1000]))}


MUTATIONS: Mapping[str, Mutation] = {
    "nothing": lambda draw, envelope: None,  # it must count
    "names": _names,
    "shapes": _array(_shape),
    "claims": _claims,
    "dtypes": _array(lambda draw, array: Array(np.zeros(array.numpy().shape, np.dtype(draw.choice(DTYPES))))),
    "entries": _entries,
    "far": _far,
    "octets": _array(lambda draw, array: Array(array.dtype, array.shape, array.stype, damage(draw, array.data))),
    "headers": _array(_header),
    "stypes": _array(
        lambda draw, array: Array(array.dtype, array.shape, draw.choice(["", "pickle", "torch", "x" * 999]), array.data)
    ),
    # What Flower writes beside an array is not read by the server, so lies in it are harmless.
    "labels on arrays": _array(
        lambda draw, array: Array("object", (10**9,) * draw.randrange(9), array.stype, array.data)
    ),
    # Many times larger than the slice.
    "sizes": _array(
        lambda draw, array: Array(
            np.zeros(array.numpy().size * draw.choice([20, 200, 2000]) + 2000, array.numpy().dtype)
        )
    ),
    "records": _records,
    "forms": _says("config", "upload", "float32", "float16", "int8", "int4", *OTHERS),
    "labels": _labels,
    "examples": _says("metrics", "num-examples", *ANY, 10_000_001, 10_000_000),
    "metrics": _metrics,
    "capacities": _says("config", "capacity", *ANY, "a", 1.5, 1e-300, 0.25),
    "schemas": _says("config", "heterofl-schema", *ANY, 2, "1"),
    "keys": _keys,  # more than was asked for is harmless
}
