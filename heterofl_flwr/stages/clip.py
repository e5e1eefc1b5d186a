"""Clip: shorten what a client changes to a bound."""

import math
from collections.abc import Mapping
from dataclasses import replace
from reprlib import repr as shown

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.core.differential_privacy import clipped
from heterofl_flwr.core.reply_checks import LARGEST_ENTRY, check_reply
from heterofl_flwr.stages.stage import ClientContext, Outgoing, RoundContext, Stage, Update

KEY = "clip"
"""What the instruction to a client calls the bound."""


class Clip(Stage):
    """Shorten a client's change of its slice to an L2 norm, on the client and again on the server."""

    reads_replies = False

    def __init__(self, clip: float) -> None:
        self.clip = clip

    def instruction(self) -> Mapping[str, float | str]:
        """Tell clients the bound."""
        return {KEY: float(self.clip)}

    @classmethod
    def from_instruction(cls, config: Mapping[str, object]) -> Stage | None:
        """Return the stage with the bound that an instruction names."""
        clip = config.get(KEY, 0.0)
        if not isinstance(clip, float) or not 0 <= clip < math.inf:
            raise ReplyError(f"the server sent {shown(clip)} as {KEY}, expected a number of 0 or more")
        return Clip(clip) if clip else None

    def on_client(self, outgoing: Outgoing, context: ClientContext) -> Outgoing:
        """Shorten the change before it is sent."""
        return replace(outgoing, tensors=clipped(context.received(), outgoing.tensors, self.clip))

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Shorten the change, for a client may not have done so."""
        check_reply(context.state, update.plan, update.tensors, update.weight, LARGEST_ENTRY)
        return replace(update, tensors=clipped(update.plan.extract(context.state), update.tensors, self.clip))
