"""Seconds and bytes of secure aggregation of a paper model with clients of five levels, against a plain round.

Seconds are processor time, so other programs have less influence.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import LEVELS, Aggregation, Plan
from heterofl_flwr.nn import PAPER
from heterofl_flwr.secure.client import ClientRound, Dealt, Masked, MaskedRounds, make_keys
from heterofl_flwr.secure.crypto import Words
from heterofl_flwr.secure.fixed_point import to_steps
from heterofl_flwr.secure.masks import add_pairs
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.server import ServerRound
from heterofl_flwr.secure.slices import overlap
from heterofl_flwr.stages.secure_sum_client import vector_of
from simulations.bench.measure import Goal

State = Mapping[str, Tensor]
Result = TypeVar("Result")

LEAST, BOUND = 3, 4.0
LABELS = [0, 1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    clients = "numbers of clients, a to e in turns"
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50, 100], help=clients)
    parser.add_argument("--model", default="cifar10", choices=sorted(PAPER), help="the paper's model for this data set")


def run(options: argparse.Namespace) -> list[Goal]:
    if min(options.clients) < len(LEVELS):
        raise ConfigError(f"--clients is {min(options.clients)}; expected at least {len(LEVELS)}, one of each level")
    torch.set_num_threads(1)
    build = PAPER[options.model].build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        full = build(1.0)
        plans = {level: Plan.of(full, build(rate)) for level, rate in LEVELS.items()}
    state = {name: own.detach() for name, own in full.named_parameters()}
    print(f"{options.model}, {plans['a'].parameters:,} parameters at level a; seed 0, one thread; a tenth is lost\n")
    goals = []
    for number in options.clients:
        federation = Federation(state, list(full.label_rows), plans, number)  # type: ignore[arg-type]
        goals += federation.measure()
    return goals


def timed(call: Callable[..., Result], *arguments: object) -> tuple[float, Result]:
    started = time.process_time()
    found = call(*arguments)
    return time.process_time() - started, found


@dataclass
class Federation:
    """Clients of five levels in a round of secure aggregation, and the measured seconds of each level."""

    state: State
    rows: Sequence[str]
    plans: Mapping[str, Plan]
    number: int
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    clients: dict[int, ClientRound] = field(default_factory=dict)

    def level(self, client: int) -> str:
        return list(self.plans)[client % len(self.plans)]

    def spend(self, what: str, client: int, call: Callable[..., Result], *arguments: object) -> Result:
        """Return the result of a client's call, and record its seconds."""
        seconds, found = timed(call, *arguments)
        self.seconds[what, self.level(client)].append(seconds)
        return found

    def measure(self) -> list[Goal]:
        roster = self.collect_keys()
        shares = {client: self.share(client) for client in self.clients}
        opening, server = timed(ServerRound, roster, shares)
        survivors = [client for client in self.clients if client >= self.number // 10]
        adding, sizes, beside = 0.0, dict[str, int](), 0
        for client in survivors:
            masked = self.mask(client, server)
            adding += timed(server.add, client, masked)[0]
            sizes[self.level(client)] = masked.vector.nbytes
            texts = [*shares[client].sealed, *shares[client].hashes, *masked.shares.sealed, *masked.shares.hashes]
            beside = max(beside, len(roster.to_bytes()) + 2 * sum(map(len, texts)))
        revealed = {}
        for client in survivors:
            arguments = server.survivors, server.seeds_for(client)
            revealed[client], kept = self.spend("reveal", client, self.clients[client].reveal, *arguments)
            self.clients[client] = ClientRound(kept, self.clients[client].roster)
        closing = timed(server.unmask, revealed)[0]
        seconds, numbers = timed(server.row_numbers)
        rows = {client: self.spend("rows", client, self.clients[client].reveal_rows, numbers) for client in survivors}
        closing += seconds + timed(server.unmask_rows, numbers, rows)[0] + timed(server.sums)[0]
        plain = timed(self.average, survivors)[0]
        print(f"{self.number} clients: server {opening + adding + closing:.2f} s (plain {plain:.2f} s)")
        print(f"  beside its change a client sends and receives up to {beside:,} bytes")
        for level, plan in self.plans.items():
            parts = [
                f"{what} {statistics.median(own):.3f} s" for (what, at), own in self.seconds.items() if at == level
            ]
            print(f"  level {level}: {', '.join(parts)}; {sizes[level]:,} bytes (plain {4 * plan.parameters:,})")
        worst = max(sizes[level] / (4 * plan.parameters) for level, plan in self.plans.items())
        return [
            Goal(f"{self.number} clients: masked bytes in times the plain ones, most", worst, most=1.1),
            Goal("ms for a million entries and neighbour", self.pair_milliseconds(server), most=20),
        ]

    def collect_keys(self) -> Roster:
        answers = {client: self.spend("keys", client, make_keys) for client in range(self.number)}
        plans, keys = [self.plans[self.level(client)] for client in answers], [own for own, _ in answers.values()]
        roster = Roster.of(
            plans, keys, run=1, server_round=1, least=LEAST, bound=BOUND, rows=self.rows, extra_rows=True, grid=()
        )
        self.clients = {client: ClientRound(kept, roster) for client, (_, kept) in answers.items()}
        return roster

    def share(self, client: int) -> Dealt:
        shares, kept = self.spend("shares", client, self.clients[client].share_keys)
        # As in a deployment, where a new process answers each message and reads the roster again.
        self.clients[client] = ClientRound(kept)
        return shares

    def mask(self, client: int, server: ServerRound) -> Masked:
        plan = self.plans[self.level(client)]
        generator = torch.Generator().manual_seed(client)
        changes = {name: torch.randn(shape, generator=generator) / 100 for name, shape in plan.shapes.items()}

        def fill(roster: Roster, held: Plan, members: int) -> Words:
            return vector_of(roster, held, to_steps(changes, BOUND, members, generator), LABELS)

        arguments = server.members, server.keys_for(client), fill, MaskedRounds({})
        masked, kept = self.spend("mask", client, self.clients[client].mask, *arguments)
        self.clients[client] = ClientRound(kept, self.clients[client].roster)
        return masked

    def average(self, clients: Sequence[int]) -> State:
        """Return the plain mean of the replies of these clients."""
        replies = {level: plan.extract(self.state) for level, plan in self.plans.items()}
        aggregator = Aggregation(self.state, self.rows)
        for level in map(self.level, clients):
            aggregator.add(self.plans[level], replies[level], labels=LABELS)
        return aggregator.result()

    def pair_milliseconds(self, server: ServerRound) -> float:
        """Return the milliseconds of a level-a client's masks with all peers, per million common entries."""
        client, roster = self.clients[0], self.clients[0].roster
        slices = [roster.slices[number] for number, *_ in roster.clients]
        entries = sum(overlap(slices[0], other).parameters for other in slices[1:])
        private, view = client.private("mask"), roster.view(server.members)
        vector = np.zeros(slices[0].parameters, np.uint32)
        others = set(range(1, self.number))
        return timed(add_pairs, vector, roster, view, 0, private, others)[0] * 1e9 / entries
