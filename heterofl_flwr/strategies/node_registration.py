"""Nodes that come and go: waiting for enough of them, and asking new ones for their capability."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from flwr.app import Message
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import Fault, RoundError, listed
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.federation.records import host_log
from heterofl_flwr.federation.summary import warn_of_mix, warn_of_names, warn_of_untrained
from heterofl_flwr.strategies.round_messages import Budget
from heterofl_flwr.transport import messages, packing
from heterofl_flwr.transport.compat import get_nodes
from heterofl_flwr.transport.exchange import query

QUERY_SHARE = 0.25
"""Upper bound on the share of a round's time in which new nodes may report their capability."""

QUERY_SECONDS = 120.0
"""Upper bound in seconds on the same: a busy machine may first have to start its clients."""

AGAIN_SECONDS = 5.0
"""Time for nodes that did not answer the query of an earlier round; a later answer counts in the next round."""

WINDOW = 1000
"""Queries sent at once."""

POLL_SECONDS = 0.5


class NodeRegistration:
    """The nodes of a grid in one round, and what they can hold.

    A node that does not answer the capability query is left out of the round, and asked again in the next one; where no
    node that was drawn answers, all are asked again. The time for queries comes from the round's budget; the time in
    which too few nodes are there does not.
    """

    def __init__(self, grid: Grid, federation: Federation, server_round: int, budget: Budget) -> None:
        self._grid, self._federation, self._nodes = grid, federation, federation.nodes
        self._server_round, self._budget = server_round, budget
        self._patience = min(QUERY_SECONDS, budget.remaining(QUERY_SHARE))  # seconds for queries, in this round
        self._queried: set[int] = set()  # in this round
        self._began = self._asked = time.monotonic()
        self._begins = not self._nodes.order

    def wait(self) -> list[int]:
        """Return the nodes that can be drawn, as soon as there are enough.

        These are the nodes that have reported their capability; where draws go by registered names, all that are there.
        While new nodes come and report more partitions than there are nodes, this waits too: otherwise a first round
        could begin with any part of a simulation's clients.
        """
        sampling = self._federation.options.sampling
        deadline, announced = time.monotonic() + sampling.wait, False
        while True:
            began = time.monotonic()
            present, newcomers = self._look()
            usable = self._nodes.order
            enough = len(present) >= sampling.available
            if enough and self._federation.levels.asks_all:
                patience = self._patience
                usable = self.ask(self._nodes.order)
                deadline += patience - self._patience
                present = self._nodes.present
                enough = len(usable) >= sampling.available
            if not (enough or announced):
                announced, least = True, f"expected at least {sampling.available}"
                host_log.info("waiting up to %g s for nodes: %d are there, %s", sampling.wait, len(usable), least)
            waits_for_more = not enough or (newcomers and self._nodes.most_said() > len(present))
            if not waits_for_more or time.monotonic() >= deadline:
                break
            time.sleep(min(POLL_SECONDS, sampling.wait))
            if not enough:
                self._budget.extend(time.monotonic() - began)
                self._queried -= self._nodes.unanswered
        if not enough and len(present) >= sampling.available:
            self._fail(len(present), "nodes that are there", len(usable), sampling.available)
        if not enough:
            raise RoundError(
                f"{len(present)} nodes are there after {sampling.wait:g} s, expected at least {sampling.available}: "
                f"start more SuperNodes (flower-supernode), simulate more (flwr run . --federation-config "
                f"'num-supernodes=20'), or ask for fewer (min_available_nodes or sample.min-nodes)"
            )
        return usable

    def ask(self, node_ids: Sequence[int]) -> list[int]:
        """Ask the nodes that are not known for their capability; return the known ones of all these."""
        unknown = [node_id for node_id in node_ids if node_id not in self._nodes]
        # One query a round: that of a node without an answer is still under way.
        new = [node_id for node_id in unknown if node_id not in self._queried and node_id not in self._nodes.unanswered]
        retries = [node_id for node_id in unknown if node_id not in self._queried and node_id in self._nodes.unanswered]
        self._queried.update(unknown)
        began = self._asked = time.monotonic()
        answers = self._query(new, lambda: self._patience - (time.monotonic() - began))
        self._patience = max(0.0, self._patience - (time.monotonic() - began))
        answers |= self._query(retries, lambda: min(AGAIN_SECONDS, self._budget.remaining()))
        silent = {
            node_id
            for node_id, answer in answers.items()
            if isinstance(answer, Fault) and answer.kind in ("silent", "gone", "late")
        }
        if any(isinstance(answer, Fault) for answer in answers.values()):  # nodes may have left meanwhile
            self._look()
        present = self._nodes.present
        self._nodes.unanswered |= silent & present
        answered = {
            node_id: answer for node_id, answer in answers.items() if node_id in present and node_id not in silent
        }
        if answered:
            self._federation.register(answered, present=present)
        return [node_id for node_id in node_ids if node_id in self._nodes]

    def ask_again(self, drawn: int) -> None:
        """Let silent nodes be asked once more; raise if those that were drawn had ``sample.wait`` seconds to answer."""
        if time.monotonic() >= self._began + self._federation.options.sampling.wait:
            self._fail(drawn, "nodes that were drawn")
        self._queried -= self._nodes.unanswered
        time.sleep(POLL_SECONDS)
        self._budget.extend(time.monotonic() - self._asked)

    def log_changes(self) -> None:
        """Log which nodes joined, left or came back; in a first round, warn of nodes that do not fit the options."""
        nodes, changes = self._nodes, self._nodes.changes
        if self._begins:
            warn_of_mix(self._federation, nodes.order)
            limits = self._federation.options.limits
            if limits.levels or limits.partitions:
                names = {name for node_id in nodes.order for name in (str(node_id), nodes.registered_name(node_id))}
                warn_of_names(limits, names)
        if self._begins or nodes.has_new_capacity:
            warn_of_untrained(self._federation, self._server_round, nodes.order)
            nodes.has_new_capacity = False
        for change in () if self._begins else changes:
            host_log.info("round %d: %s", self._server_round, change)
        changes.clear()

    def _look(self) -> tuple[set[int], set[int]]:
        """Return the nodes that are there, and which of them are new."""
        present = {*self._grid.get_node_ids()}
        newcomers = present - self._nodes.present
        names: Mapping[int, str] = {}
        if newcomers:
            names = {node.node_id: name for node in get_nodes(self._grid) if (name := getattr(node, "name", ""))}
        self._federation.levels.update_nodes(present, names, self._server_round)
        return present, newcomers

    def _query(self, node_ids: Sequence[int], seconds: Callable[[], float]) -> dict[int, Capability | Fault]:
        """Ask nodes in windows, which share the seconds; return the answers and faults."""

        def read(node_id: int, reply: Message) -> Capability:
            return packing.read_capability(reply, self._nodes.name(node_id))

        config = {messages.SERVER_ROUND: self._server_round}  # mods of apps read it in any message
        answers: dict[int, Capability | Fault] = {}
        windows = [node_ids[start : start + WINDOW] for start in range(0, len(node_ids), WINDOW)]
        for number, window in enumerate(windows):
            share = max(0.0, seconds()) / (len(windows) - number)
            answers |= query(self._grid, messages.QUERY_CAPABILITY, dict.fromkeys(window, config), share, read)
        return answers

    def _fail(self, asked: int, which: str, usable: int = 0, least: int = 1) -> NoReturn:
        """Raise the error of too few answers to the capability query."""
        names = listed(map(self._nodes.name, self._nodes.unanswered))
        raise RoundError(
            f"{usable} of {asked} {which} answered the capability query, expected at least {least}; no answer of "
            f"{names}: see the logs of these SuperNodes, restart them, or give them more time (engine.timeout, "
            f"start(timeout=...))"
        )
