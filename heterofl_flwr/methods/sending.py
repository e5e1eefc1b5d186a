"""Messages out and replies back, without a wait for those that are not needed."""

import time
from collections.abc import Callable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

POLL_SECONDS = 1.0
"""Between two looks for replies on a grid that cannot wait for them."""


def first_replies(grid: Grid, messages: Sequence[Message], enough: int, timeout: float) -> list[Message]:
    """Send messages and return the replies that are there as soon as ``enough`` of them are no errors.

    At the latest, those that are there after ``timeout`` seconds. The others are ignored, whenever they come.
    """
    deadline = time.monotonic() + timeout
    waiting = [id_ for id_ in grid.push_messages(messages) if id_]
    replies: list[Message] = []
    while True:
        new = list(grid.pull_messages(waiting)) if waiting else []
        answered = {reply.metadata.reply_to_message_id for reply in new}
        waiting = [id_ for id_ in waiting if id_ not in answered]
        replies += new
        good = sum(not reply.has_error() for reply in replies)
        left = deadline - time.monotonic()
        if good >= enough or not waiting or left <= 0:
            break
        time.sleep(min(POLL_SECONDS, left))
    cancel: Callable[[list[str]], None] | None = getattr(grid, "cancel", None)  # a LocalGrid has it
    if cancel:
        cancel(waiting)
    return replies
