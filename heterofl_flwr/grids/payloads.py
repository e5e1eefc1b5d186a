"""How messages and their nodes' contexts travel to workers and back: large arrays beside the pickle, slices once."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any
from weakref import WeakValueDictionary

from flwr.app import Array, ArrayRecord, Context, Message

from heterofl_flwr.grids.apps import Envelope, copy_context, copy_message

LARGE = 1 << 16  # bytes from which an array travels by itself: not copied into a pickle and out of it again

Place = tuple[int, str, str]
"""Where a large array belongs: in the message (0) or its node's state (1), in which record, under which key."""


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
        self._stored: Any = None
        self._lock = threading.Lock()

    def length_in(self, arrays: Sequence[bytes]) -> int:
        """Return how many of these arrays, the first ones, are its own: a message may have changed since its push."""
        own = list(map(id, self.arrays))
        return len(own) if self.messages > 1 and list(map(id, arrays[: len(own)])) == own else 0

    def stored(self, store: Callable[[tuple[bytes, ...]], Any]) -> Any:
        """Return what ``store`` returned for the arrays when it was first called; it lives as long as the slice."""
        with self._lock:
            if self._stored is None:
                self._stored = store(self.arrays)
            return self._stored


class Slices:
    """The slices of the messages that are under way, whatever number of pushes these came with."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[tuple[int, ...], Slice] = WeakValueDictionary()

    def find(self, message: Message) -> Slice | None:
        """Return the slice that a message brings; None where it has no large array."""
        arrays = tuple(array.data for _, array in _large_of(message, None))
        if not arrays:
            return None
        key = tuple(map(id, arrays))
        own = self._known.get(key)
        if own is None:
            own = self._known[key] = Slice(arrays)
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
            thin, places, arrays = split(envelope)
            common = own.length_in(arrays) if own else 0
            number = own.number if own and common else 0
            header.append((thin, places, number, common))
            travelling += arrays[common if number in keep else 0 :]
            if own and common:
                keep[number] = own
        self._connection.send((header, list(self._sent)))  # raises before it sends, where something does not pickle
        self._sent.update(keep)
        for data in travelling:
            self._connection.send_bytes(data)

    def receive(self) -> list[Envelope]:
        """Receive what ``send`` sends."""
        header, keep = self._connection.recv()
        self._received = {number: self._received[number] for number in keep}
        envelopes = []
        for thin, places, number, common in header:
            if number and number not in self._received:
                self._received[number] = [self._connection.recv_bytes() for _ in range(common)]
            own = [self._connection.recv_bytes() for _ in places[common:]]
            envelopes.append(join(thin, places, [*self._received.get(number, ()), *own]))
        return envelopes


def split(envelope: Envelope) -> tuple[Envelope, list[Place], list[bytes]]:
    """Return a copy of an envelope without its large arrays, and these: first the message's, then its node's."""
    message, context, trouble = envelope
    found = list(_large_of(message, context))
    thin = Envelope(copy_message(message), context and copy_context(context), trouble)
    records = _array_records(thin.message, thin.context)
    for (part, name, key), own in found:
        records[part][name][key] = Array(own.dtype, tuple(own.shape), own.stype, b"")
    return thin, [place for place, _ in found], [array.data for _, array in found]


def join(envelope: Envelope, places: Sequence[Place], arrays: Iterable[Any]) -> Envelope:
    """Put large arrays back into an envelope."""
    records = _array_records(envelope.message, envelope.context)
    for (part, name, key), data in zip(places, arrays, strict=True):
        records[part][name][key].data = bytes(data)
    return envelope


def _array_records(message: Message, context: Context | None) -> list[dict[str, ArrayRecord]]:
    """Return the array records of a message and those of its node's state."""
    found: list[Mapping[str, object]] = [message.content if message.has_content() else {}]
    found.append(context.state if context is not None else {})
    return [{name: one for name, one in records.items() if isinstance(one, ArrayRecord)} for records in found]


def _large_of(message: Message, context: Context | None) -> Iterator[tuple[Place, Array]]:
    """Yield the large arrays, each with its place."""
    for part, records in enumerate(_array_records(message, context)):
        for name, record in records.items():
            yield from (((part, name, key), array) for key, array in record.items() if len(array.data) >= LARGE)
