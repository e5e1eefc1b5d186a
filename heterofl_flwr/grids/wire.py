"""How a message and its node's context travel between this process and a worker's."""

from copy import copy
from multiprocessing.connection import Connection

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

LARGE = 1 << 16  # bytes from which an array travels by itself: not copied into a pickle and out of it again


def send(connection: Connection, message: Message, context: Context | None, trouble: str = "") -> None:
    """Send all but the large arrays as one object, then these, straight from where they lie."""
    thin, thin_context = copy(message), copy(context)
    places: list[list[tuple[str, str]]] = [[], []]
    arrays: list[bytes] = []
    if message.has_content():
        thin.content = _detach(message.content, places[0], arrays)
    if context is not None and thin_context is not None:
        thin_context.state = _detach(context.state, places[1], arrays)
    connection.send((thin, thin_context, trouble, places))
    for data in arrays:
        connection.send_bytes(data)


def receive(connection: Connection) -> tuple[Message, Context | None, str]:
    """Receive what ``send`` sends."""
    message, context, trouble, places = connection.recv()
    for name, key in places[0]:
        message.content[name][key].data = connection.recv_bytes()
    for name, key in places[1]:
        context.state[name][key].data = connection.recv_bytes()
    return message, context, trouble


def _detach(records: RecordDict, places: list[tuple[str, str]], arrays: list[bytes]) -> RecordDict:
    """Return the records with large arrays empty; add where they were, and their bytes, to the lists."""
    thin = records.copy()
    for name, record in records.items():
        if not isinstance(record, ArrayRecord):
            continue
        large = {key: array for key, array in record.items() if len(array.data) >= LARGE}
        slim = record.copy()
        for key, array in large.items():
            slim[key] = Array(array.dtype, tuple(array.shape), array.stype, b"")
            places.append((name, key))
            arrays.append(array.data)
        thin[name] = slim
    return thin
