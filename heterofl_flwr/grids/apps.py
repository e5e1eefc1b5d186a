"""A ClientApp: finding it by name, finding its name, and handing it messages as Flower's own backends do."""

import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from heterofl_flwr.errors import ConfigError

SERVER_NODE_ID = 1  # flwr.common.constant.SUPERLINK_NODE_ID; a test compares them


class Identity:
    """Makes this process the server of a run. What it was before comes back when the last identity is released."""

    _held: ClassVar[int] = 0
    _before: ClassVar[dict[str, int | None]] = {}

    def __init__(self, run_id: int) -> None:
        if Identity._held == 0:
            Identity._before = {name: _peek(name) for name in ("run_id", "node_id", "task_id")}
        Identity._held += 1
        self.take(run_id)

    def take(self, run_id: int) -> None:
        """Be the server of this run."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SERVER_NODE_ID, 1

    def release(self) -> None:
        """Let go; to be called once."""
        Identity._held -= 1
        if Identity._held == 0:
            for name, value in Identity._before.items():
                setattr(TaskIdentity, name, value)


def _peek(name: str) -> int | None:
    """Return a part of the identity; None where it is not set, for which Flower raises."""
    try:
        return int(getattr(TaskIdentity, name))
    except RuntimeError:
        return None


logger = logging.getLogger(__name__)

# Codes of flwr.common.constant.ErrorCode; a test compares them.
UNKNOWN = 0
NOT_LOADED = 1
RAISED = 2
CRASHED = 8

Cohort = Callable[[Sequence[Message], Sequence[Context]], Iterable[Message]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a message: the reply, the node's context (None: as it was before), the traceback if it failed."""

    reply: Message
    context: Context | None = None
    trouble: str = ""


def load(client_app: ClientApp | str) -> ClientApp:
    """Return the ClientApp, imported where a ``"module:attribute"`` names it."""
    if isinstance(client_app, ClientApp):
        return client_app
    if not isinstance(client_app, str) or not all(client_app.partition(":")):
        raise ConfigError(
            f"client_app is {client_app!r}; expected a ClientApp or 'module:attribute', such as 'my_app.client:app'"
        )
    name, _, path = client_app.partition(":")
    try:
        found: object = importlib.import_module(name)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"client_app {client_app!r} cannot be loaded: {error}. Expected 'module:attribute' "
            "with a module that is installed or on PYTHONPATH"
        ) from error
    if not isinstance(found, ClientApp):
        raise ConfigError(f"client_app {client_app!r} is a {type(found).__name__}; expected a ClientApp")
    return found


def reference(client_app: ClientApp | str) -> str:
    """Return a ``"module:attribute"`` by which another process can import the ClientApp."""
    if isinstance(client_app, str):
        return client_app
    places = [
        f"{importable}:{attribute}"
        for name, module in list(sys.modules.items())
        if (importable := _importable(name, module))
        for attribute, value in list(getattr(module, "__dict__", {}).items())
        if value is client_app
    ]
    if not places:
        raise ConfigError(
            f"client_app is {client_app!r}, which no module holds under a name, so other processes cannot import it; "
            "expected a ClientApp at the top level of a module, its 'module:attribute', or processes=0"
        )
    return places[-1]


def _importable(name: str, module: object) -> str:
    """Return the name by which another process imports a loaded module; '' where there is none."""
    main = sys.modules["__main__"]
    if module is not main:
        return name
    if main.__spec__ is not None:  # python -m package.module
        return main.__spec__.name
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else ""


def call(app: ClientApp, message: Message, context: Context) -> Outcome:
    """Hand one message to the app, which may change what it gets."""
    return _call(lambda messages, contexts: [app(messages[0], contexts[0])], [message], [context])[0]


def call_cohort(app: ClientApp, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Outcome]:
    """Hand several messages to the app's ``train_cohort``; return nothing where it has none, or where that raises.

    They are then to be handed over one by one, so that one bad client costs the others nothing but time.
    """
    cohort: Cohort | None = getattr(app, "train_cohort", None)
    if cohort is None or len(messages) == 1:
        return []
    outcomes = _call(cohort, messages, contexts)
    if trouble := outcomes[0].trouble:
        logger.warning("%d messages are answered one by one, because together they failed:\n%s", len(messages), trouble)
        return []
    return outcomes


def _call(cohort: Cohort, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Outcome]:
    """Return what comes of copies of the messages; what the function raises becomes the error reply of each."""
    contexts = [_own_context(context) for context in contexts]
    try:
        with _one_thread():
            replies = list(cohort([_own_message(message) for message in messages], contexts))
        _check(replies, messages)
    except (Exception, SystemExit) as error:  # a worker process must outlive a client's sys.exit()
        trouble = traceback.format_exc()
        return [failure(message, RAISED, f"{type(error)}:<'{error}'>", trouble) for message in messages]
    for reply, message in zip(replies, messages, strict=True):
        _identify(reply, message)
    return [Outcome(reply, context) for reply, context in zip(replies, contexts, strict=True)]


def failure(message: Message, code: int, reason: str, trouble: str = "") -> Outcome:
    """Return the error reply to a message, worded as Flower words it; the node keeps its context."""
    reply = Message(Error(code, reason), reply_to=message)
    _identify(reply, message)
    return Outcome(reply, None, trouble or reason)


def _check(replies: Sequence[object], messages: Sequence[Message]) -> None:
    if len(replies) != len(messages):
        raise TypeError(f"the ClientApp answered {len(messages)} messages with {len(replies)} replies")
    for reply, message in zip(replies, messages, strict=True):
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned a {type(reply).__name__}; expected a Message")
        if reply.metadata.reply_to_message_id != message.metadata.message_id:
            raise ValueError("the ClientApp returned a Message that replies to another; expected reply_to=message")


def _identify(reply: Message, message: Message) -> None:
    """Give a reply its id; the property of Flower's Metadata has no setter, its own grids write it like this."""
    reply.metadata.__dict__["_message_id"] = f"{message.metadata.message_id}-reply"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: sums then do not depend on the number of cores, nor on the kind of grid."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    if torch is None or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _own_message(message: Message) -> Message:
    """Return a message whose records a client may change; the server's messages share theirs. Values are not copied."""
    own = copy(message)
    own.content = _own_records(message.content)
    return own


def _own_context(context: Context) -> Context:
    """Return a context that a client may change; it replaces the node's only where the client succeeds."""
    return Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=dict(context.node_config),
        state=_own_records(context.state),
        run_config=dict(context.run_config),
    )


def _own_records(records: RecordDict) -> RecordDict:
    own = records.copy()
    for name, record in records.items():
        own[name] = record.copy()
    return own
