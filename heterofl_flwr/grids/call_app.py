"""Loading a ClientApp, and calling it with messages as Flower's backends do."""

import logging
import traceback
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import NamedTuple, TypeVar

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.user_code import load_function
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.transport.compat import ErrorCode

logger = logging.getLogger(__name__)

Copied = TypeVar("Copied", Message, Context)

Cohort = Callable[[Sequence[Message], Sequence[Context]], Iterable[Message]]


class Envelope(NamedTuple):
    """A message with its node's context, or a reply with the changed context.

    An error reply has no context; its traceback or reason is ``trouble``.
    """

    message: Message
    context: Context | None = None
    trouble: str = ""


def load(client_app: ClientApp | str) -> ClientApp:
    """Return ``client_app``; import it if it is a text ``"module:attribute"``."""
    app: object = load_function(client_app, "client_app") if isinstance(client_app, str) else client_app
    if not isinstance(app, ClientApp):
        raise ConfigError(
            f"client_app is {client_app!r}, a {type(app).__name__}; expected a ClientApp or the import path of one, "
            f"such as 'my_app.client:app'"
        )
    return app


def answer(app: ClientApp, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Envelope]:
    """Call the app with messages, and return envelopes with its replies.

    Several messages go to ``app.train_cohort``, if it exists. If ``train_cohort`` fails, the app is called with each
    message alone.
    """
    cohort: Cohort | None = getattr(app, "train_cohort", None)
    if cohort is not None and len(messages) > 1:
        answers = _call(cohort, messages, contexts)
        if not (trouble := answers[0].trouble):
            return answers
        cause = trouble.rstrip().rpartition("\n")[2]
        logger.warning("%d messages are answered one by one, because together they failed: %s", len(messages), cause)
        logger.info("%s", trouble)
    answers = []
    for message, context in zip(messages, contexts, strict=True):
        answers += _call(lambda messages, contexts: [app(messages[0], contexts[0])], [message], [context])
    return answers


def _call(cohort: Cohort, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Envelope]:
    # Copies, because a node's context may change only if its client succeeds, and messages share their records.
    contexts = [_copy(context, context.state) for context in contexts]
    received = [_copy(message, message.content if message.has_content() else RecordDict()) for message in messages]
    try:
        with torch_threads(1):  # sums then do not depend on the number of cores or on the grid
            replies = list(cohort(received, contexts))
        if len(replies) != len(messages):
            raise TypeError(f"the ClientApp answered {len(messages)} messages with {len(replies)} replies")
        for reply, message in zip(replies, messages, strict=True):
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned a {type(reply).__name__}; expected a Message")
            if reply.metadata.reply_to_message_id != message.metadata.message_id:
                raise ValueError("the ClientApp returned a Message that replies to another; expected reply_to=message")
    except (Exception, SystemExit) as error:  # a client's sys.exit() must not end the grid
        trouble = traceback.format_exc()
        return [failure(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, error, trouble) for message in messages]
    return [Envelope(reply, context) for reply, context in zip(replies, contexts, strict=True)]


def failure(message: Message, code: int, reason: str | BaseException, trouble: str = "") -> Envelope:
    """Return an envelope with the error reply to a message; ``trouble`` is the traceback, by default the reason."""
    text = reason if isinstance(reason, str) else f"{type(reason)}:<'{reason}'>"
    return Envelope(Message(Error(code, text), reply_to=message), None, trouble or text)


def _copy(value: Copied, records: RecordDict) -> Copied:
    """Return a copy of a message or context. The arrays are not copied, but shared with the original."""
    return deepcopy(
        value, {id(record): record.copy() for record in records.values() if isinstance(record, ArrayRecord)}
    )
