"""Causes of faults that errors of Flower, torch and numpy do not name: foreign wrappers, and apps as they were."""

import logging
import sys
from types import FrameType

from flwr.app import Message

from heterofl_flwr import messages as wire
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError, ReplyError

logger = logging.getLogger(__name__)

_OTHER_SIZE = ("Error(s) in loading state_dict", "size mismatch")
"""How torch says that a slice is not the model into which a client loads it."""

_SERVER_SIDE = ("DifferentialPrivacyServerSideFixedClipping", "DifferentialPrivacyServerSideAdaptiveClipping")
_CLIENT_SIDE = ("DifferentialPrivacyClientSideFixedClipping", "DifferentialPrivacyClientSideAdaptiveClipping")
_SECURE = ("SecAggPlusWorkflow",)
_REMEDY = "leave it, and give the strategy privacy=Privacy(clip=..., noise=...)"


def check_wrappers(server_round: int) -> None:
    """Refuse to send slices on behalf of a wrapper of Flower's that needs replies of one shape.

    A wrapper calls our hooks and takes the replies before they reach us, so the only trace of it is the call.
    """
    found = _callers(sys._getframe(1))
    for name in (*_SERVER_SIDE, *_SECURE):
        if name in found:
            work = (
                "adds up masked replies of one shape" if name in _SECURE else "compares each reply with the whole model"
            )
            raise ConfigError(f"{name} {work}, and here clients train slices of different shapes: {_REMEDY}")
    for name in _CLIENT_SIDE:
        if name in found and server_round == 1:
            logger.warning(
                "%s adds noise for a mean over all clients of a round: entries that few of them hold get too little, "
                "so do not claim its guarantee: %s",
                name,
                _REMEDY,
            )


def _callers(frame: FrameType | None) -> set[str]:
    """Return the names of the classes, and of their bases, whose methods led to a call."""
    found: set[str] = set()
    while frame is not None:
        if "self" in frame.f_code.co_varnames[: frame.f_code.co_argcount]:
            found |= {kind.__name__ for kind in type(frame.f_locals.get("self")).__mro__}
        frame = frame.f_back
    return found


def explained(fault: str) -> str:
    """Return why a client failed, with the cause where torch's words say that a model has another size."""
    return f"{fault}; {wire.NOT_CONVERTED}" if any(words in fault for words in _OTHER_SIZE) else fault


def check_converted(reply: Message, plan: Plan, sender: str) -> None:
    """Refuse the reply of an app that is not converted: with the whole model for a slice."""
    whole = {name: tuple(axis.full for axis in axes) for name, axes in plan.axes.items()}
    for record in wire.arrays_in(reply.content).values():
        shapes = {name: tuple(array.shape) for name, array in record.items() if name in whole}
        if shapes == whole != plan.shapes:
            raise ReplyError(
                f"{sender} sent the whole model, expected the slice that it was sent: {wire.NOT_CONVERTED}"
            )
