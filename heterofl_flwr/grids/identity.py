"""Flower's notion of which task this process is; without one, no ``Message`` can be made."""

from typing import ClassVar

from flwr.supercore.task_identity import TaskIdentity

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
