"""How messages and nodes' contexts travel to workers and back: large arrays outside the pickle, each slice once."""

import copyreg
import io
import itertools
import pickle
import threading
from collections.abc import Iterable, MutableMapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, cast
from weakref import WeakValueDictionary

from flwr.app import Array, ArrayRecord, Message

from heterofl_flwr.grids.apps import Envelope

LARGE = 1 << 16  # bytes from which an array travels by itself: not copied into a pickle and out of it again


def pack(envelope: Envelope) -> tuple[bytes, list[bytes]]:
    """Pickle an envelope without its large arrays, and return these apart: first the message's, then its node's."""
    arrays: list[bytes] = []

    def reduce(array: Array) -> tuple[Any, ...]:
        data: bytes | pickle.PickleBuffer = array.data
        if len(array.data) >= LARGE:
            arrays.append(array.data)
            data = pickle.PickleBuffer(array.data)
        return _build_array, (array.dtype, array.shape, array.stype, data)

    pickled = io.BytesIO()
    pickler = pickle.Pickler(pickled, protocol=5, buffer_callback=lambda buffer: None)
    pickler.dispatch_table = copyreg.dispatch_table | {Array: reduce}
    pickler.dump(envelope)
    return pickled.getvalue(), arrays


def unpack(pickled: bytes, arrays: Iterable[Any]) -> Envelope:
    """Return an envelope with its large arrays."""
    return cast(Envelope, pickle.loads(pickled, buffers=arrays))  # noqa: S301  # our own workers pickled it


def _build_array(dtype: str, shape: Sequence[int], stype: str, data: Any) -> Array:
    return Array(dtype, tuple(shape), stype, bytes(data))


class Slice:
    """The large arrays that messages have in common, such as the slice of the global model at one level.

    They are known by the identity of their bytes, which cannot change, and which are held here, so that no others can
    take that identity.
    """

    _numbers = itertools.count(1)

    def __init__(self, arrays: tuple[bytes, ...]) -> None:
        self.arrays = arrays
        self.number = next(Slice._numbers)
        self.messages = 0
        self.reference: object = None  # to where Ray has stored the arrays
        self.lock = threading.Lock()

    def length_in(self, arrays: Sequence[bytes]) -> int:
        """Return how many of these arrays, the first ones, are its own: a message may have changed since its push."""
        own = list(map(id, self.arrays))
        return len(own) if self.messages > 1 and list(map(id, arrays[: len(own)])) == own else 0


def find_slice(message: Message, known: MutableMapping[tuple[int, ...], Slice]) -> Slice | None:
    """Return the slice that a message brings, one of the known ones or a new one; None if it has no large array."""
    records = message.content.values() if message.has_content() else ()
    found = (array for record in records if isinstance(record, ArrayRecord) for array in record.values())
    arrays = tuple(array.data for array in found if len(array.data) >= LARGE)
    if not arrays:
        return None
    key = tuple(map(id, arrays))
    own = known.get(key) or Slice(arrays)
    known[key] = own
    own.messages += 1
    return own


class Wire:
    """One end of a connection between this process and a worker. A slice travels once, and is kept while it lives."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent: WeakValueDictionary[int, Slice] = WeakValueDictionary()  # what the other end keeps
        self._received: dict[int, list[bytes]] = {}  # what this end keeps

    def send(self, envelopes: Sequence[Envelope], slices: Iterable[Slice | None] = ()) -> None:
        """Send all but the large arrays as one object, then these, straight from where they lie."""
        keep = dict(self._sent)
        header, travelling = [], []
        for envelope, own in itertools.zip_longest(envelopes, slices):
            pickled, arrays = pack(envelope)  # raises before anything is sent, where something does not pickle
            common = own.length_in(arrays) if own else 0
            number = own.number if own and common else 0
            header.append((pickled, number, common, len(arrays) - common))
            travelling += arrays[common if number in keep else 0 :]
            if own and common:
                keep[number] = own
        self._connection.send((header, list(self._sent)))
        self._sent.update(keep)
        for data in travelling:
            self._connection.send_bytes(data)

    def receive(self) -> list[Envelope]:
        """Receive what ``send`` sends."""
        header, keep = self._connection.recv()
        self._received = {number: self._received[number] for number in keep}
        envelopes = []
        for pickled, number, common, others in header:
            if number and number not in self._received:
                self._received[number] = [self._connection.recv_bytes() for _ in range(common)]
            own = [self._connection.recv_bytes() for _ in range(others)]
            envelopes.append(unpack(pickled, [*self._received.get(number, ()), *own]))
        return envelopes
