"""What a client keeps from task to task: in its context, or in a folder of its node."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor

from heterofl_flwr.client.client_states import keep_state, read_state, states_folder
from heterofl_flwr.stages.registry import client_stages
from heterofl_flwr.transport import messages, packing

_KEPT = "heterofl-own"
"""How the record of a client's context begins that has the parameters that stay with it, and what stages keep."""

STAGES = "stages/"
"""What the names of the latter begin with."""

_NOTES = "heterofl-round"
"""The record of a node's context with what stages keep during a round, which never leaves the node's memory."""

CONTEXT: ContextVar[Context | None] = ContextVar("context", default=None)
"""The context of the node whose message is being answered."""


def kept_part(context: Context | None, message: Message) -> dict[str, Tensor] | None:
    """Return what ``reply`` kept of a client before this message; None if there is no context, or nothing was kept."""
    if context is None:
        return None
    if folder := states_folder(context, messages.read_config(message)):
        return read_state(folder, message)
    record = context.state.get(_record_name(messages.read_config(message)))
    return packing.read_tensors(record, "this client's context") if isinstance(record, ArrayRecord) else None


def own_layers(context: Context | None, message: Message) -> dict[str, Tensor] | None:
    """Return a client's own layers, where not all are shared; None if nothing was kept."""
    return kept_part(context, message) if messages.SHARED in messages.read_config(message) else None


def keep_part(context: Context, config: ConfigRecord, state: Mapping[str, Tensor]) -> None:
    """Keep a client's own parameters as an instruction has left them.

    They are kept in the folder that the node's config names (``states-path``), else in its context, which Flower keeps
    as long as the node lives and the run lasts.
    """
    if folder := states_folder(context, config):
        keep_state(folder, config, state)
        return
    for other in [name for name in context.state if name.startswith(_KEPT)]:  # of this run before, or of another
        del context.state[other]
    context.state[_record_name(config)] = ArrayRecord(dict(state))


def _record_name(config: ConfigRecord) -> str:
    """Return the name of a run's record."""
    return f"{_KEPT}-{messages.read_optional(config, messages.RUN_KEY, int) or 0:016x}"


def kept_by_stages(context: Context | None, message: Message) -> dict[str, Tensor]:
    """Return what stages keep from task to task, by their own names."""
    keeping = any(stage.stateful for stage in client_stages(messages.read_config(message)))
    kept = (kept_part(context, message) if keeping else None) or {}
    return {name.removeprefix(STAGES): own for name, own in kept.items() if name.startswith(STAGES)}


@contextmanager
def answering(context: Context) -> Iterator[None]:
    """Let ``reply`` know whose context it is, without being given it."""
    token = CONTEXT.set(context)
    try:
        yield
    finally:
        CONTEXT.reset(token)


def read_notes(context: Context | None) -> dict[str, bytes] | None:
    """Return what stages keep during a round; None without a context."""
    if context is None:
        return None
    record = context.state.get(_NOTES)
    return cast("dict[str, bytes]", dict(record)) if isinstance(record, ConfigRecord) else {}


def keep_notes(context: Context | None, notes: Mapping[str, bytes] | None) -> None:
    """Keep what stages keep during a round."""
    if context is not None:
        context.state[_NOTES] = ConfigRecord(dict(notes or {}))
