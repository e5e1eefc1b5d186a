"""Remarks on valid replies: the clock of the client is wrong, or training has changed nothing."""

import logging
import time
from collections import defaultdict

from heterofl_flwr.common.errors import listed
from heterofl_flwr.federation.nodes import Nodes

CLOCK_SECONDS = 2.0
"""Maximum difference of a client's clock from the server's without a warning; a SuperLink refuses a clock 5 s ahead."""

UNCHANGED = (
    "sent back the parameters that they were sent, so they trained nothing: see that they have a batch (with "
    "drop_last=True, fewer examples than batch_size give none), that the optimizer has the parameters of task.model(), "
    "and that reply gets this model"
)

logger = logging.getLogger(__name__)


class ReplyRemarks:
    """Remarks on the replies of a round. ``write`` logs each remark on a client once in a run."""

    def __init__(self, server_round: int, nodes: Nodes) -> None:
        self._server_round, self._nodes = server_round, nodes
        self._clients: dict[str, list[int]] = defaultdict(list)  # by remark

    def note_unchanged(self, node_id: int) -> None:
        """Note that a client has sent back the parameters that it received."""
        self._clients[UNCHANGED].append(node_id)

    def note_clock(self, node_id: int, sent_at: float, replied_at: float) -> None:
        """Note whether a reply's time shows that the client's clock is wrong.

        ``sent_at`` is the time of the message on the server's clock, ``replied_at`` the time of the reply on the
        client's clock. The clock is wrong if ``replied_at`` is more than ``CLOCK_SECONDS`` before ``sent_at`` or more
        than ``CLOCK_SECONDS`` after the present.
        """
        ahead, behind = replied_at - time.time(), sent_at - replied_at
        if max(ahead, behind) > CLOCK_SECONDS:
            way = "ahead of" if ahead > behind else "behind"
            text = f"replied by a clock over {CLOCK_SECONDS:g} s {way} the server's: set it (timedatectl set-ntp true)"
            self._clients[text].append(node_id)

    def write(self) -> None:
        """Log the remarks that were not logged before in this run."""
        logged = self._nodes.remarks
        for remark, node_ids in self._clients.items():
            if names := [self._nodes.name(node_id) for node_id in node_ids if (remark, node_id) not in logged]:
                logger.warning("round %d: %s %s", self._server_round, listed(names), remark)
            logged.update((remark, node_id) for node_id in node_ids)
