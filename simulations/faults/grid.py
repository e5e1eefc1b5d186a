"""Any grid, watched; a node of it may come, go, or answer late."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Error, Message
from flwr.serverapp import Grid

from heterofl_flwr.grids.windowed import Relay
from simulations.faults.client import round_of
from simulations.faults.fault import Fault
from simulations.faults.kinds import KINDS

SUPERLINK = 1  # the node id under which a SuperLink answers for a node that is gone
UNAVAILABLE = 5  # Flower's code for it


class Watched(Relay):
    """Hands all on to another grid, and tells when a round's instructions go out and when its replies are in."""

    def __init__(self, grid: Grid, fault: Fault) -> None:
        super().__init__(grid)
        self._fault = fault
        self._kind = KINDS[fault.kind]

    def __getattr__(self, name: str) -> Any:
        """Return what a grid may have beside Flower's interface."""
        return getattr(self._grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        messages = list(messages)
        self._before(messages)
        return self._grid.push_messages(messages)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return their replies; all of them, so that it is known when they are in."""
        messages = list(messages)
        number = self._before(messages)
        replies = self._grid.send_and_receive(messages, timeout=timeout)
        if number is None:
            return replies
        replies = self._change(list(replies), messages, number)
        self._fault.note("trained", number)
        return replies

    def _before(self, messages: list[Message]) -> int | None:
        """Reach the moment before instructions to train go out; return their round."""
        number = next(filter(None, map(round_of, messages)), None)
        if number is not None and self._kind.actor == "server" and self._fault.strikes("before", number):
            self._kind.act(self._fault)
        return number

    def _change(self, replies: list[Message], messages: list[Message], number: int) -> list[Message]:
        del messages, number
        return replies


class Unsteady(Watched):
    """A grid of which one node comes, goes, or answers late, if that is the fault; missing replies are taken away."""

    def __init__(self, grid: Grid, fault: Fault) -> None:
        super().__init__(grid, fault)
        self._ids = list(grid.get_node_ids())
        self._node = self._ids[fault.partition]
        self._there = fault.kind != "node-joins"
        self._next = 1
        self._late: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are there."""
        if self._kind.actor == "grid" and self._fault.kind != "reply-late":
            if self._fault.kind == "node-returns" and self._next == self._fault.server_round + 1:
                self._there = True
            if self._fault.strikes("before", self._next):
                self._there = not self._there
        return [node_id for node_id in self._ids if node_id != self._node or self._there]

    def _change(self, replies: list[Message], messages: list[Message], number: int) -> list[Message]:
        """Return what of a round's replies reaches the server."""
        self._next = number + 1
        replies = self._without_missing(replies, number)
        if self._fault.kind == "reply-late":
            return self._delayed(replies, number)
        if self._kind.actor == "grid":
            for moment in ("during", "after"):
                if self._fault.strikes(moment, number):
                    self._there = not self._there
                    if not self._there:
                        return self._gone(replies, messages, moment)
        return replies

    def _without_missing(self, replies: list[Message], number: int) -> list[Message]:
        away = {self._ids[partition] for partition, server_round in self._fault.missing if server_round == number}
        return [reply for reply in replies if reply.metadata.src_node_id not in away]

    def _gone(self, replies: list[Message], messages: list[Message], moment: str) -> list[Message]:
        """Take the reply of the node that left: while it worked, the SuperLink says so; later, nobody does."""
        left = [reply for reply in replies if reply.metadata.src_node_id != self._node]
        if moment == "during":
            asked = next(message for message in messages if message.metadata.dst_node_id == self._node)
            error = Message(Error(UNAVAILABLE, "Node Unavailable"), reply_to=asked)
            error.metadata.__dict__["_src_node_id"] = SUPERLINK
            left.append(error)
        return left

    def _delayed(self, replies: list[Message], number: int) -> list[Message]:
        """Keep a reply back, and hand it out among those of the next round: first, beside the node's own, or last."""
        own = [reply for reply in replies if reply.metadata.src_node_id == self._node]
        if self._fault.strikes(self._fault.moment, number):
            self._late = own
            return [reply for reply in replies if reply not in own]
        if not self._late:
            return replies
        place = {"before": 0, "during": replies.index(own[0]), "after": len(replies)}[self._fault.moment]
        late, self._late = self._late, []
        return [*replies[:place], *late, *replies[place:]]
