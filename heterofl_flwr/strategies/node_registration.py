"""Registration of a grid's nodes."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from flwr.app import Message
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import Fault, RoundError, counted, listed
from heterofl_flwr.federation.capability import Capability
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.round_record import host_log
from heterofl_flwr.federation.sampling import Participation, Purpose
from heterofl_flwr.federation.start_summary import warn_of_mix, warn_of_names, warn_of_untrained
from heterofl_flwr.strategies.round_messages import query
from heterofl_flwr.strategies.time_budget import QUERY_SHARE, Budget
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.compat import get_nodes

QUERY_SECONDS = 120.0
"""Upper bound on the time for capability queries in seconds; a busy machine may take this long to start its clients."""

AGAIN_SECONDS = 5.0
"""Seconds to wait for nodes that did not answer an earlier query; a later answer counts in the next round."""

LEAST_NODES = {
    "min_available_nodes": "min_available_nodes, sample.min-nodes, or min_available_clients in the classic API",
    "min_train_nodes": "min_train_nodes, or min_fit_clients in the classic API",
    "min_evaluate_nodes": "min_evaluate_nodes, or min_evaluate_clients in the classic API",
}
"""Options that set the number of nodes that a round waits for, each with its other names."""

WINDOW = 1000
"""Number of queries sent at once."""

POLL_SECONDS = 0.5


def least_nodes(sampling: Participation) -> list[str]:
    """Return the options that require ``sampling.available`` nodes, with all their names."""
    requiring = [names for option, names in LEAST_NODES.items() if getattr(sampling, option) == sampling.available]
    return requiring or [LEAST_NODES["min_available_nodes"]]


class NodeRegistration:
    """Registration of the nodes of a grid in one round.

    A node that does not answer is queried again: in the same round if too few nodes have answered, else in the next
    round. A node that has not answered at the end is left out of the round. Queries count towards the time limit of the
    round; the wait for enough nodes does not.
    """

    def __init__(self, grid: Grid, federation: Federation, server_round: int, budget: Budget) -> None:
        self._grid, self._federation, self._nodes = grid, federation, federation.nodes
        self._server_round, self._budget = server_round, budget
        share = budget.remaining(QUERY_SHARE)
        self._patience = min(QUERY_SECONDS, share)  # seconds for all queries of this round
        self._more = (
            "engine.timeout, start(timeout=...)" if share < QUERY_SECONDS else "sample.wait, Sampling(wait=...)"
        )
        self._queried: set[int] = set()  # nodes queried in this round
        self._began = self._queried_at = time.monotonic()
        self._begins = not self._nodes.order
        self._nodes.forget_failed()

    def sample(self, purpose: Purpose) -> tuple[list[int], list[int]]:
        """Wait for enough nodes. Return the nodes that can be sampled, and the sampled nodes.

        If only the sampled nodes are queried for their capability, nodes that do not answer or cannot train are left
        out of the sample.
        """
        levels = self._federation.levels
        while True:
            node_ids = self.wait()
            if purpose == "train":
                node_ids = levels.trainable_nodes(node_ids)
            sampled = levels.sample(self._server_round, node_ids, purpose)
            if levels.asks_all:
                break
            answered = self.ask(sampled)
            if answered or purpose == "evaluate":
                sampled = sorted(filter(levels.can_train, answered), key=self._nodes.partition)
                break
            self._ask_again(len(sampled))
        self.log_changes()
        return node_ids, sampled

    def wait(self) -> list[int]:
        """Wait for enough nodes; return the nodes that can be sampled.

        If nodes report more partitions than there are nodes, wait until no new node joins. Raise ``RoundError`` if,
        after ``Sampling.wait`` seconds, too few nodes are connected or have answered the capability query.
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
                state = "connected" if len(present) < sampling.available else "answered the capability query"
                host_log.info("waiting up to %g s for nodes: %d %s, %s", sampling.wait, len(usable), state, least)
            waits_for_more = not enough or (newcomers and self._nodes.most_said() > len(present))
            if not waits_for_more or time.monotonic() >= deadline:
                break
            time.sleep(min(POLL_SECONDS, sampling.wait))
            if not enough:
                self._budget.extend(time.monotonic() - began)
                self._queried -= self._nodes.unanswered
        if not enough and len(present) >= sampling.available:
            self._fail(counted(len(present), "connected node"), len(usable), sampling.available)
        if not enough:
            raise RoundError(self._too_few(len(present)))
        return usable

    def _too_few(self, number: int) -> str:
        sampling, away = self._federation.options.sampling, self._nodes.are_away()
        missing = f"; away: {listed(away)}" if away else ""
        return (
            f"{counted(number, 'node')} connected after {sampling.wait:g} s, expected at least {sampling.available}"
            f"{missing}: start more of them (flower-supernode; start_client for start_server), simulate more (flwr run "
            f". --federation-config 'num-supernodes=20'), wait longer (Sampling(wait=...) or sample.wait), or ask for "
            f"fewer ({' and '.join(least_nodes(sampling))})"
        )

    def ask(self, node_ids: Sequence[int]) -> list[int]:
        """Query the nodes in ``node_ids`` whose capability is unknown, except those queried before in this round.

        Return the nodes in ``node_ids`` whose capability is known after the query.
        """
        unasked = [node_id for node_id in node_ids if node_id not in self._nodes and node_id not in self._queried]
        # One query for each node in a round, unless there are too few nodes: an earlier query may still be answered.
        new = [node_id for node_id in unasked if node_id not in self._nodes.unanswered]
        retries = [node_id for node_id in unasked if node_id in self._nodes.unanswered]
        self._queried.update(unasked)
        began = self._queried_at = time.monotonic()
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
            self._federation.register(answered)
        return [node_id for node_id in node_ids if node_id in self._nodes]

    def _ask_again(self, drawn: int) -> None:
        if time.monotonic() >= self._began + self._federation.options.sampling.wait:
            self._fail(counted(drawn, "sampled node"))
        self._queried -= self._nodes.unanswered
        time.sleep(POLL_SECONDS)
        self._budget.extend(time.monotonic() - self._queried_at)

    def log_changes(self) -> None:
        """Log which nodes joined, left or came back, except in the first round.

        In the first round, warn if the present nodes do not fit the mix or the tables in ``limits``. In the first
        round, and after a client has reported a new capacity, warn if too few clients can train the largest level.
        """
        nodes, changes = self._nodes, self._nodes.changes
        if self._begins:
            warn_of_mix(self._federation, nodes.order)
            names = {name for node_id in nodes.order for name in (str(node_id), nodes.registered_name(node_id))}
            warn_of_names(self._federation.options.limits, names)
        if self._begins or nodes.has_new_capacity:
            warn_of_untrained(self._federation, self._server_round, nodes.order)
            nodes.has_new_capacity = False
        for change in () if self._begins else changes:
            host_log.info("round %d: %s", self._server_round, change)
        changes.clear()

    def _look(self) -> tuple[set[int], set[int]]:
        """Update the registry from the grid; return the present nodes, and the new ones among them."""
        present = {*self._grid.get_node_ids()}
        newcomers = present - self._nodes.present
        names: Mapping[int, str] = {}
        if newcomers:
            names = {node.node_id: name for node in get_nodes(self._grid) if (name := getattr(node, "name", ""))}
        self._federation.levels.update_nodes(present, names, self._server_round)
        return present, newcomers

    def _query(self, node_ids: Sequence[int], seconds: Callable[[], float]) -> dict[int, Capability | Fault]:
        def read(node_id: int, reply: Message) -> Capability:
            return reading.read_capability(reply, self._nodes.name(node_id))

        config = {messages.SERVER_ROUND: self._server_round}  # mods of apps read it in any message
        answers: dict[int, Capability | Fault] = {}
        windows = [node_ids[start : start + WINDOW] for start in range(0, len(node_ids), WINDOW)]
        for number, window in enumerate(windows):
            share = max(0.0, seconds()) / (len(windows) - number)
            answers |= query(self._grid, messages.QUERY_CAPABILITY, dict.fromkeys(window, config), share, read)
        return answers

    def _fail(self, queried: str, usable: int = 0, least: int = 1) -> NoReturn:
        names = listed(map(self._nodes.name, self._nodes.unanswered))
        raise RoundError(
            f"{usable} of {queried} answered the capability query, expected at least {least}; no answer of "
            f"{names}: give them more time ({self._more}). In a simulation the machine is busy: run fewer clients at "
            f"once, or end other programs. In a deployment, see the logs of these nodes, and restart them"
        )
