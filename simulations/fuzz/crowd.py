"""Nodes of a SuperLink that share a process and speak its protocol themselves, so that they can break it.

Each has a key, a connection with TLS and the ClientApp of a good node; what it does with the replies is its attack.
Start it with what :class:`Crowd` holds, as JSON.
"""

import json
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord, Context, Message, RecordDict

from heterofl_flwr import messages
from heterofl_flwr.compat import inflate_object_from_contents
from heterofl_flwr.grids.apps import Identity, answer, load
from simulations.flower_internals import (
    get_fused_config_from_fab,
    http_request_response,
    iterate_object_tree,
    pull_objects,
)
from simulations.fuzz.attacks import ATTACKS, Turn

POLL = 1.0


@dataclass(frozen=True, slots=True)
class Member:
    """A node: the name of its key, its config, and its attack."""

    name: str
    config: Mapping[str, Any]
    attack: str = "none"


@dataclass(frozen=True, slots=True)
class Crowd:
    """Where the SuperLink is, the folder of the keys, the ClientApp, and who takes part."""

    superlink: str
    keys: str
    app: str
    members: Sequence[Member]

    @classmethod
    def of(cls, said: str) -> "Crowd":
        """Return what is written as JSON."""
        found = json.loads(said)
        return cls(**{**found, "members": [Member(**own) for own in found["members"]]})

    def run(self, stop: threading.Event) -> None:
        """Serve until told to stop."""
        app, lock, unanswered = load(self.app), threading.Lock(), dict[str, Message]()
        nodes = [Node(self, member, app, lock, unanswered) for member in self.members]
        threads = [threading.Thread(target=node.run, args=[stop]) for node in nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Node:
    """One node; nodes share an app, a lock, as clients share torch's random state, and what nobody has answered."""

    def __init__(
        self, crowd: Crowd, member: Member, app: Any, lock: threading.Lock, unanswered: dict[str, Message]
    ) -> None:
        self._crowd, self._member, self._app, self._lock, self._unanswered = crowd, member, app, lock, unanswered
        self._contexts: dict[int, Context] = {}
        self._sent: list[Message] = []

    def run(self, stop: threading.Event) -> None:
        """Connect, and answer messages."""
        keys = Path(self._crowd.keys)
        key = load_ssh_private_key((keys / self._member.name).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        authority, pair = (keys / "ca.crt").read_bytes(), (key, key.public_key())
        with http_request_response(self._crowd.superlink, False, authority, pair, 10, 60) as connection:
            self._id, self._receive, self._send, self._get_run, self._get_fab, self._pull, self._push, self._confirm = (
                connection
            )
            while not stop.wait(POLL):
                with suppress(Exception):  # the run has ended, or the SuperLink refuses what was sent: both may be
                    if received := self._receive():
                        self._answer(*received)

    def _answer(self, announced: Message, tree: Any) -> None:
        run_id, id_, name = announced.metadata.run_id, announced.metadata.message_id, self._member.name
        ids = [own.object_id for own in iterate_object_tree(tree)]
        asked = inflate_object_from_contents(id_, pull_objects(ids, lambda own: self._pull(run_id, own)))
        assert isinstance(asked, Message)
        asked.metadata.__dict__["_message_id"] = id_
        self._confirm(run_id, id_)
        self._unanswered[name] = asked
        with self._lock:
            ((reply, context, _),) = answer(self._app, [asked], [self._context(run_id)])
        others = [message for node, message in list(self._unanswered.items()) if node != name]
        self._contexts[run_id] = context or self._contexts[run_id]
        turn = Turn(asked, reply, round_of(asked), self._sent, others)
        for message, upload in ATTACKS[self._member.attack].outgoing(turn):
            with suppress(Exception):  # one that the SuperLink refuses
                wanted, session = self._send(message, upload.tree, 0.0)
                for own, content in upload.objects.items():
                    if own in wanted and content is not None:
                        self._push(run_id, session, own, content)
        del self._unanswered[name]

    def _context(self, run_id: int) -> Context:
        if run_id not in self._contexts:
            run = self._get_run(run_id)
            config = get_fused_config_from_fab(self._get_fab(run.fab_hash, run_id).content, run)
            self._contexts[run_id] = Context(run_id, self._id, dict(self._member.config), RecordDict(), config)
        return self._contexts[run_id]


def round_of(message: Message) -> int:
    """Return the round that a message names; 0 where it names none."""
    config = message.content.get(messages.CONFIG)
    number = config.get(messages.SERVER_ROUND, 0) if isinstance(config, ConfigRecord) else 0
    return number if isinstance(number, int) else 0


def main() -> None:
    crowd, stop = Crowd.of(sys.argv[1]), threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    identity = Identity(1)
    crowd.run(stop)
    identity.release()


if __name__ == "__main__":
    main()
