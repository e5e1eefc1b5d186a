"""What hypothesis draws to make a good reply, answer, text or file a bad one.

A change is a function that changes an envelope; it prints as what it does, and hypothesis looks for the shortest.
"""

from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

MAGIC = b"\x93NUMPY"
PIECES = (*b'nan inf , " { {} [ [[[[ -1 1e999 {"a":1e999} null \xff\xfe \x80\x04. PK\x03\x04'.split(b" "), b"9" * 400)
PIECES += (b"[[[[" * 2000, MAGIC, MAGIC + b"\x09\x09", MAGIC + b"\x02\x00")
HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (10**30,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-8,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999), }",
    "{'descr': '<f4', 'fortran_order': 7, 'shape': [8], }",
    "{'descr': [('a', '<f4', 99999999)], 'fortran_order': False, 'shape': (1,), }",
    *(OBJECTS := "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", CODE := "__import__('os').abort()"),
    *("(" * 3000, "[" * 90 + "]" * 90, "\x00" * 200, "9" * 9000),
)
NUMBERS = (2**31, 2**63, 10**30, 10**400, -(10**400), 1e300, 1e-320, 10_000_001)
NAMES = ("", "x" * 5000, "\x1b[2J", "a\nb", "../../etc/passwd", "loss/1e-300", "coverage", "labels", "capacity")


def draw(change, *arguments):
    """Draw a change from what hypothesis draws for its arguments."""
    return st.builds(
        partial, st.just(change), *(own if isinstance(own, st.SearchStrategy) else st.just(own) for own in arguments)
    )


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9)
scalars = plain | st.sampled_from([*NUMBERS, "1", "a", "a" * 10_000, "0,1", object()])
anything = scalars | st.lists(scalars, max_size=5) | st.lists(st.integers(-1, 4), max_size=6) | st.just({})
names = st.sampled_from(NAMES) | st.text(max_size=9)
lengths, pieces = st.sampled_from([0, 1, 4, 50, 10_000]), st.binary(max_size=50) | st.sampled_from(PIECES)
edits = st.lists(st.tuples(st.floats(0, 1), lengths, pieces), min_size=1, max_size=3)
"""Where in some bytes, how many are removed there, and what comes in their place."""


def damage(edits, data):
    """Return bytes of which some are removed, or have others in their place or between them."""
    for place, length, instead in edits:
        first = int(place * len(data))
        data = data[:first] + instead + data[first + length :]
    return data


def put(part, values, envelope):
    """Write values into a part of a reply."""
    getattr(envelope, part).update(values)


def drop(part, envelope):
    """Leave a part of a reply empty."""
    getattr(envelope, part).clear()


def put_array(number, make, envelope):
    """Put another array in the place of one."""
    name = list(envelope.first)[number % len(envelope.first)]
    envelope.first[name] = make(envelope.first[name])


def damaged(edits, array):
    return Array(array.dtype, array.shape, array.stype, damage(edits, array.data))


def headed(header, version, array):
    """Write another header before an array's values."""
    text = header.encode("latin1") + b"\n"
    head = MAGIC + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text
    return Array(array.dtype, array.shape, array.stype, head + array.numpy().tobytes())


def zeros(dtype, array):
    return Array(np.zeros(array.numpy().shape, dtype))


def labelled(array):
    """Lie in what Flower writes beside an array, which nobody reads."""
    return Array("object", (10**9,) * 3, array.stype, array.data)


def put_values(number, factor, more, envelope):
    """Multiply all arrays, or one of them, by a number, and add another."""
    with np.errstate(all="ignore"):
        for place, (name, array) in enumerate(envelope.values.items()):
            if number in (None, place):
                values = array.numpy()
                envelope.values[name] = Array(np.asarray((values * factor + more).astype(values.dtype)))


def rename(number, name, envelope):
    """Give an array another name."""
    old = list(envelope.first)[number % len(envelope.first)]
    envelope.first[name] = envelope.first.pop(old)


def repeat(times, envelope):
    """Send one array many times more."""
    envelope.first.update({f"more{number}": next(iter(envelope.first.values())) for number in range(times)})


def put_record(name, kind, envelope):
    """Add an empty record, or leave one out."""
    envelope.more[name] = kind() if kind else None
    envelope.arrays.pop(name, None)


def said(part, *keys):
    """Draw the change that writes anything under keys that mean something."""
    return draw(put, part, st.dictionaries(st.sampled_from(keys), anything, min_size=1))


makers = st.one_of(
    draw(damaged, edits),
    draw(headed, st.sampled_from(HEADERS), st.sampled_from([1, 2, 3])),
    draw(zeros, arrays.scalar_dtypes() | arrays.array_dtypes()),
    draw(
        lambda value, array: Array(value),
        arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, max_side=9)),
    ),
    st.just(labelled),
)
of_config = st.one_of(
    said("config", "capacity", "partition", "num-partitions", "num-examples", "moments"),
    said("config", "heterofl-schema", "upload"),
    draw(put, "config", st.dictionaries(names, anything)),
    draw(drop, "config"),
)
"""What can be wrong with what a client says of itself."""

places, floats = st.integers(0, 3), st.floats(width=32) | st.sampled_from([1.0, 1e16, -3e38])
records = st.sampled_from(["arrays", "changes", "scales", "config", "metrics", "moments", "posteriors", "", "x" * 999])
changes = st.one_of(
    of_config,
    said("config", "labels"),
    said("metrics", "num-examples", "loss"),
    draw(put, "metrics", st.dictionaries(names, anything)),
    draw(drop, st.sampled_from(["metrics", "first"])),
    draw(put_array, places, makers),
    draw(put_values, st.none() | places, floats, floats),
    draw(rename, places, names),
    draw(repeat, st.sampled_from([1, 10, 2000])),
    draw(put_record, records, st.sampled_from([None, ArrayRecord, ConfigRecord, MetricRecord])),
)
"""What can be wrong with a reply to either API."""
