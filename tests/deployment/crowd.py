"""Nodes of a SuperLink that share a process and speak its protocol themselves, so that they can break it.

Each has a key, a connection with TLS and the ClientApp of a good node; what it does with the replies is its attack.
``python -m tests.deployment.crowd SUPERLINK KEYS ATTACK,...`` is the process; node n, from 1 on, has the nth attack.
"""

import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, RecordDict

from heterofl_flwr.app.launch.request import CLIENT_APP
from heterofl_flwr.compat import inflate_object_from_contents
from heterofl_flwr.grids.apps import Identity, answer, load
from tests.flower_internals import (
    get_fused_config_from_fab,
    http_request_response,
    iterate_object_tree,
    pull_objects,
)
from tests.hostile.uploads import FORGERIES, as_it_is, outgoing, withheld

POLL = 1.0
AGAIN = "an old reply again"
ATTACKS = {**FORGERIES, "objects withheld": withheld, AGAIN: as_it_is}


class Node:
    """One node; nodes share an app and a lock, as clients share torch's random state."""

    def __init__(self, number, superlink, keys, attack, nodes, app, lock):
        self._config = {"level": "abe"[number % 3], "partition-id": number, "num-partitions": nodes}
        self._name, self._superlink, self._keys, self._attack = f"node-{number}", superlink, Path(keys), attack
        self._app, self._lock, self._context, self._old = app, lock, None, None

    def run(self, stop):
        """Connect, and answer messages."""
        key = load_ssh_private_key((self._keys / self._name).read_bytes(), None)
        authority = (self._keys / "ca.crt").read_bytes()
        pair = key, key.public_key()
        with http_request_response(self._superlink, False, authority, pair, 10, 60) as connection:
            while not stop.wait(POLL):
                with suppress(Exception):  # the run has ended, or the SuperLink refuses what was sent: both may be
                    if received := connection[1]():
                        self._answer(connection, *received)

    def _answer(self, connection, announced, tree):
        node_id, _, send, get_run, get_fab, pull, push, confirm = connection
        run_id, id_ = announced.metadata.run_id, announced.metadata.message_id
        ids = [own.object_id for own in iterate_object_tree(tree)]
        asked = inflate_object_from_contents(id_, pull_objects(ids, lambda own: pull(run_id, own)))
        asked.metadata.__dict__["_message_id"] = id_
        confirm(run_id, id_)
        if self._context is None:
            run = get_run(run_id)
            config = get_fused_config_from_fab(get_fab(run.fab_hash, run_id).content, run)
            self._context = Context(run_id, node_id, self._config, RecordDict(), config)
        with self._lock:
            ((reply, context, _),) = answer(self._app, [asked], [self._context])
        self._context = context or self._context
        message, upload = self._attacked(reply)
        wanted, session = send(message, upload.tree, 0.0)
        for own, content in upload.objects.items():
            if own in wanted and content is not None:
                push(run_id, session, own, content)

    def _attacked(self, reply):
        """Return what the node sends in place of a good reply to an instruction to train."""
        if reply.metadata.message_type != "train":
            return outgoing(reply)
        if self._attack == AGAIN:
            reply = self._old = self._old or reply
        return outgoing(reply, ATTACKS[self._attack])


def main():
    superlink, keys, attacks = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
    app, lock, stop = load(CLIENT_APP), threading.Lock(), threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    identity = Identity(1)
    nodes = [Node(own, superlink, keys, attack, 1 + len(attacks), app, lock) for own, attack in enumerate(attacks, 1)]
    threads = [threading.Thread(target=node.run, args=[stop]) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    identity.release()


if __name__ == "__main__":
    main()
