"""How messages and their nodes' contexts travel between this process and a worker's."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

LARGE = 1 << 16  # bytes from which an array travels by itself: not copied into a pickle and out of it again

Letter = tuple[Message, Context | None, str]
"""A message, its node's context, and the traceback of what failed."""

Place = tuple[int, str, str]
"""Where a large array belongs: in the message (0) or its node's state (1), in which record, under which key."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Shared:
    """Large arrays that several messages have in common; a worker that was sent one keeps it for the next message.

    They are known by the identity of their bytes, which cannot change. The bytes are held here, so that no others can
    take that identity.
    """

    number: int = 0
    arrays: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def among(cls, messages: Iterable[Message]) -> "Shared":
        """Return what these messages have in common."""
        seen: set[int] = set()
        common: dict[int, bytes] = {}
        for message in messages:
            own = {id(array.data): array.data for _, array in _large_of(message, None)}
            common |= {identity: own[identity] for identity in own.keys() & seen}
            seen |= own.keys()
        return cls(next(_numbers), common) if common else NOTHING


NOTHING = Shared()


class Wire:
    """One end of a connection between this process and a worker.

    Either end keeps the shared arrays that it was sent, until others are shared.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent = 0  # the number of what was shared last
        self._there: set[int] = set()  # what the other end keeps of it
        self._received = 0
        self._here: dict[int, bytes] = {}  # what this end keeps

    def send(self, letters: Sequence[Letter], shared: Shared = NOTHING) -> None:
        """Send all but the large arrays as one object, then these, straight from where they lie."""
        there = set(self._there) if shared.number == self._sent else set()
        plan, arrays = [], []
        for number, (message, context, _) in enumerate(letters):
            for place, array in _large_of(message, context):
                identity = id(array.data) if id(array.data) in shared.arrays else 0
                travels = identity not in there
                plan.append((number, place, identity, travels))
                arrays += [array.data] if travels else []
                there |= {identity} - {0}
        thin = [_thin(*letter) for letter in letters]
        self._connection.send((thin, plan, shared.number))  # raises before it sends, where something does not pickle
        self._sent, self._there = shared.number, there
        for data in arrays:
            self._connection.send_bytes(data)

    def receive(self) -> list[Letter]:
        """Receive what ``send`` sends."""
        letters: list[Letter]
        letters, plan, number = self._connection.recv()
        if number != self._received:
            self._received, self._here = number, {}
        for number, place, identity, travels in plan:
            data = self._connection.recv_bytes() if travels else self._here[identity]
            if identity:
                self._here[identity] = data
            _fill(letters[number], place, data)
        return letters


def split(letter: Letter) -> tuple[Letter, list[Place], list[bytes]]:
    """Return a copy of a letter without its large arrays, and these: first the message's, then its node's."""
    found = list(_large_of(*letter[:2]))
    return _thin(*letter), [place for place, _ in found], [array.data for _, array in found]


def join(letter: Letter, places: Sequence[Place], arrays: Iterable[Any]) -> Letter:
    """Put large arrays back into a letter."""
    for place, data in zip(places, arrays, strict=True):
        _fill(letter, place, bytes(data))
    return letter


def large_arrays(message: Message) -> tuple[bytes, ...]:
    """Return the large arrays of a message, as ``split`` orders them."""
    return tuple(array.data for _, array in _large_of(message, None))


def _fill(letter: Letter, place: Place, data: bytes) -> None:
    part, name, key = place
    _array_records(*letter[:2])[part][name][key].data = data


def _array_records(message: Message, context: Context | None) -> list[dict[str, ArrayRecord]]:
    """Return the array records of a message and those of its node's state."""
    found: list[Mapping[str, object]] = [message.content if message.has_content() else {}]
    found.append(context.state if context is not None else {})
    return [{name: one for name, one in records.items() if isinstance(one, ArrayRecord)} for records in found]


def _large_of(message: Message, context: Context | None) -> Iterator[tuple[Place, Array]]:
    """Yield the large arrays, each with its place."""
    for part, records in enumerate(_array_records(message, context)):
        for name, record in records.items():
            yield from (((part, name, key), array) for key, array in _large_in(record).items())


def _thin(message: Message, context: Context | None, trouble: str) -> Letter:
    """Return copies with the large arrays empty."""
    slim, slim_context = copy(message), copy(context)
    if message.has_content():
        slim.content = _without_large(message.content)
    if context is not None and slim_context is not None:
        slim_context.state = _without_large(context.state)
    return slim, slim_context, trouble


def _without_large(records: RecordDict) -> RecordDict:
    thin = records.copy()
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            thin[name] = slim = record.copy()
            empty = {key: Array(own.dtype, tuple(own.shape), own.stype, b"") for key, own in _large_in(record).items()}
            slim.update(empty)
    return thin


def _large_in(record: ArrayRecord) -> dict[str, Array]:
    return {key: array for key, array in record.items() if len(array.data) >= LARGE}
