"""Nodes of a SuperLink that share a process and speak its protocol themselves, so that they can break it.

Each has a key, a connection with TLS and the ClientApp of a good node; what it does with the replies is its attack.
Start it with a JSON file that says what :class:`Crowd` takes.
"""

import json
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

from heterofl_flwr import messages as wire
from heterofl_flwr.grids.apps import Identity, answer, load
from simulations.fuzz.attacks import ATTACKS, Outgoing, Turn

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

    def write(self, path: Path) -> None:
        """Write what a process of this module reads."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Crowd":
        """Read what ``write`` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**found, "members": [Member(**own) for own in found["members"]]})


class Running:
    """A crowd that is at work, until it is told to stop."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.stop = threading.Event()
        self.lock = threading.Lock()  # clients train one by one: they share torch's random state
        self.open: dict[str, Message] = {}  # messages that nobody has answered
        self.app = load(crowd.app)

    def run(self) -> None:
        """Serve until told to stop."""
        threads = [threading.Thread(target=Node(self, member).run) for member in self.crowd.members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class Node:
    """One node."""

    def __init__(self, running: Running, member: Member) -> None:
        self._running, self._member = running, member
        self._contexts: dict[int, Context] = {}
        self._sent: list[Message] = []

    def run(self) -> None:
        """Connect, and answer messages."""
        keys = Path(self._running.crowd.keys)
        key = load_ssh_private_key((keys / self._member.name).read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        authority = (keys / "ca.crt").read_bytes()
        superlink = self._running.crowd.superlink
        with http_request_response(superlink, False, authority, (key, key.public_key()), 10, 60) as connection:
            self._id, self._receive, self._send, self._get_run, self._get_fab, self._pull, self._push, self._confirm = (
                connection
            )
            while not self._running.stop.wait(POLL):
                with suppress(
                    Exception
                ):  # the run has ended, or the SuperLink refuses what was sent: both are expected
                    self._answer()

    def _answer(self) -> None:
        received = self._receive()
        if received is None:
            return
        announced, tree = received
        run_id, id_ = announced.metadata.run_id, announced.metadata.message_id
        objects = pull_objects(
            [own.object_id for own in iterate_object_tree(tree)], lambda own: self._pull(run_id, own)
        )
        asked = inflate_object_from_contents(id_, objects)
        assert isinstance(asked, Message)
        asked.metadata.__dict__["_message_id"] = id_
        self._confirm(run_id, id_)
        running = self._running
        running.open[self._member.name] = asked
        with running.lock:
            ((reply, context, _),) = answer(running.app, [asked], [self._context(run_id)])
        others = [message for name, message in list(running.open.items()) if name != self._member.name]
        self._contexts[run_id] = context or self._contexts[run_id]
        turn = Turn(asked, reply, round_of(asked), self._sent, others)
        for out in ATTACKS[self._member.attack].act(turn):
            with suppress(Exception):  # one that the SuperLink refuses
                self._upload(out)
        del running.open[self._member.name]

    def _context(self, run_id: int) -> Context:
        if run_id not in self._contexts:
            run = self._get_run(run_id)
            config = get_fused_config_from_fab(self._get_fab(run.fab_hash, run_id).content, run)
            self._contexts[run_id] = Context(run_id, self._id, dict(self._member.config), RecordDict(), config)
        return self._contexts[run_id]

    def _upload(self, out: Outgoing) -> None:
        message, upload = out
        wanted, session = self._send(message, upload.tree, 0.0)
        for id_, content in upload.objects.items():
            if id_ in wanted and content is not None:
                self._push(message.metadata.run_id, session, id_, content)


def round_of(message: Message) -> int:
    """Return the round that a message names; 0 where it names none."""
    config = message.content.get(wire.CONFIG)
    number = config.get(wire.SERVER_ROUND, 0) if isinstance(config, ConfigRecord) else 0
    return number if isinstance(number, int) else 0


def main() -> None:
    running = Running(Crowd.read(Path(sys.argv[1])))
    signal.signal(signal.SIGTERM, lambda number, frame: running.stop.set())
    identity = Identity(1)
    running.run()
    identity.release()


if __name__ == "__main__":
    main()
