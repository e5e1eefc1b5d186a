"""What Flower's grid talks to, without a network: a SuperLink whose nodes answer at once, byte by byte as they like."""

import time
from collections.abc import Callable, Iterable
from importlib import import_module
from types import SimpleNamespace
from typing import Any, TypeVar

from flwr.app import Metadata

from heterofl_flwr.transport.compat import FLOWER, PullAppMessagesRequest, Run
from tests.flower_internals import (
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectResponse,
    iterate_object_tree,
    message_to_proto,
    metadata_from_proto,
)
from tests.hostile.uploads import Outgoing

Answer = Callable[[Metadata], Iterable[Outgoing]]
"""From a message, of which all is known but what it holds, to all that its node sends when it has it."""

Response = TypeVar("Response")
REQUEST_SECONDS = 0.005
PROTOCOL: Any = import_module(PullAppMessagesRequest.__module__)


class Clock:
    """Stands for ``time``: it goes on when somebody sleeps, or asks the SuperLink for an object."""

    now = 0.0
    time = staticmethod(time.time)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SuperLink:
    """Takes one reply to each message, from the node that it went to, as Flower's does."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.objects: dict[str, bytes | None] = {}
        self.parts: dict[str, list[str]] = {}  # of each object, as it was first announced: it has one entry for all
        self.asked: dict[str, int] = {}
        self.waiting: list[Metadata] = []
        self.replies: dict[str, Outgoing | None] = {}
        self.confirmed: list[str] = []
        self.pulls = 0
        self.clock = Clock()
        self.event_hooks: dict[str, list[Any]] = {"request": [], "response": []}  # of httpx
        self._client = self

    def PushMessages(self, request: Any) -> Any:
        """Keep messages until replies are asked for: here Flower computes no ids, and nodes need theirs."""
        protos = [message.metadata for message in request.messages_list]
        self.asked |= {proto.message_id: proto.dst_node_id for proto in protos}
        self.waiting += map(metadata_from_proto, protos)
        return PROTOCOL.PushAppMessagesResponse(message_ids=[proto.message_id for proto in protos], objects_to_push=[])

    PushObject = None  # the grid looks for it, and calls it for objects that were asked for: none

    def accept(self, out: Outgoing) -> None:
        """Keep a reply, or drop it."""
        announced, upload = out
        about = announced.metadata.reply_to_message_id
        if self.asked.get(about) != announced.metadata.src_node_id or about in self.replies:
            return
        self.replies[about] = out
        self.objects |= {id_: own for id_, own in upload.objects.items() if self.objects.get(id_) is None}
        for tree in iterate_object_tree(upload.tree):
            self.parts.setdefault(tree.object_id, [own.object_id for own in tree.children])

    def tree(self, id_: str) -> ObjectTree:
        """Return what the SuperLink believes an object to have as its parts."""
        return ObjectTree(object_id=id_, children=map(self.tree, self.parts[id_]))

    def PullMessages(self, request: Any) -> Any:
        """Return what was announced in reply to messages, each but once."""
        while self.waiting:
            for out in self.answer(self.waiting.pop(0)):
                self.accept(out)
        found = [reply for id_ in request.message_ids if (reply := self.replies.get(id_))]
        self.replies |= dict.fromkeys((announced.metadata.reply_to_message_id for announced, _ in found), None)
        return self._observed(
            PROTOCOL.PullAppMessagesResponse(
                messages_list=[message_to_proto(announced) for announced, _ in found],
                message_object_trees=[self.tree(upload.tree.object_id) for _, upload in found],
            )
        )

    def PullObject(self, request: Any) -> PullObjectResponse:
        """Return an object, where it is there."""
        self.pulls += 1
        self.clock.now += REQUEST_SECONDS
        id_, content = request.object_id, self.objects.get(request.object_id)
        return self._observed(
            PullObjectResponse(
                object_found=id_ in self.parts, object_available=content is not None, object_content=content or b""
            )
        )

    def ConfirmMessageReceived(self, request: Any) -> ConfirmMessageReceivedResponse:
        """Note which replies can be dropped."""
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()

    def _observed(self, response: Response) -> Response:
        """Let the client's hooks see the length of a response."""
        size = response.ByteSize()  # type: ignore[attr-defined]
        for hook in self.event_hooks["response"]:
            hook(SimpleNamespace(headers={"content-length": str(size)}))
        return response


def connected(answer: Answer, run_id: int = 7) -> tuple[Any, SuperLink]:
    """Return Flower's grid, and the SuperLink that it is connected to."""
    place, kind = ("http_grid", "HttpGrid") if FLOWER >= (1, 35) else ("grpc_grid", "GrpcGrid")
    grid = getattr(import_module(f"flwr.superlink.grid.{place}"), kind)("127.0.0.1:1", insecure=True, token="token")
    superlink = SuperLink(answer)
    grid.set_run(Run.create_empty(run_id))
    grid._client = grid._channel = grid._grpc_stub = superlink
    return grid, superlink
