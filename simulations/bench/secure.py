"""Secure aggregation of a paper model over clients of five levels: seconds and bytes, beside the plain round.

Beside it are the masks of Flower's SecAgg+, which needs clients of one size, all of level a: its quantisation, its masks
of all neighbours, its shares.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_mod
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from torch import Tensor

from heterofl_flwr.core import LEVELS, Aggregator, Plan
from heterofl_flwr.nn import PAPER
from heterofl_flwr.secure.client import ClientRound, make_keys
from heterofl_flwr.secure.fixed_point import to_steps
from heterofl_flwr.secure.roster import Roster, compact
from heterofl_flwr.secure.server import ServerRound
from heterofl_flwr.stages.secure_sum import vector_of
from simulations.bench.measure import Goal

State = Mapping[str, Tensor]
Result = TypeVar("Result")
MODEL = "cifar10"
LEAST = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[10, 50, 100], help="numbers of clients, in turns of a to e"
    )
    parser.add_argument("--lost", type=float, default=0.1, help="share of the clients that is lost while it trains")
    parser.add_argument("--model", default=MODEL, choices=sorted(PAPER), help="the paper's model for this data set")


def run(options: argparse.Namespace) -> list[Goal]:
    torch.set_num_threads(1)
    build = PAPER[options.model].build()
    full = build(1.0)
    state = {name: own.detach() for name, own in full.named_parameters()}
    plans = {level: Plan.of(full, build(rate)) for level, rate in LEVELS.items()}
    print(
        f"{options.model}: {plans['a'].parameters:,} parameters at level a, seed 0, one thread, {options.lost:.0%} lost\n"
    )
    goals = []
    for number in options.clients:
        goals += measure(state, list(full.label_rows), plans, number, options.lost)  # type: ignore[arg-type]
        measure_flower(state, number)
    return goals


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def measure(state: State, rows: Sequence[str], plans: Mapping[str, Plan], number: int, lost: float) -> list[Goal]:
    """Print what a round of so many clients takes on both sides; return the goals."""
    levels = [list(plans)[client % len(plans)] for client in range(number)]
    changes = {level: _change(plan, state) for level, plan in plans.items()}
    spent = {level: list[float]() for level in plans}
    kept, keys = {}, {}
    for client in range(number):
        seconds, (keys[client], kept[client]) = timed(make_keys)
        spent[levels[client]].append(seconds)
    axes, slices, numbers = compact({client: plans[level].axes for client, level in enumerate(levels)})
    roster = Roster(
        server_round=1, least=LEAST, bound=4.0, rows=rows, extra_rows=True, grid=(), axes=axes, plans=slices,
        clients=[(numbers[client], *(key.hex() for key in own)) for client, own in keys.items()],
    )  # fmt: skip
    text, shares, beside = roster.to_bytes(), {}, 0
    for client in range(number):
        seconds, (shares[client], kept[client]) = timed(
            lambda client=client: ClientRound(kept[client], Roster.from_bytes(text)).share_keys()
        )
        spent[levels[client]][client // len(plans)] += seconds
    prepared, server = timed(
        lambda: ServerRound(roster, {name: tuple(own.shape) for name, own in state.items()}, shares)
    )
    survivors = [client for client in range(number) if client >= round(lost * number)]
    vectors, masking = {}, {level: list[float]() for level in plans}
    for client in survivors:
        own = ClientRound(kept[client], Roster.from_bytes(text))
        generator, change = torch.Generator().manual_seed(client), changes[levels[client]]

        def fill(roster, held, clients, change=change, generator=generator):  # type: ignore[no-untyped-def]
            return vector_of(roster, held, to_steps(change, roster.bound, clients, generator), [0, 1])

        seconds, (masked, kept[client]) = timed(
            lambda own=own, client=client, fill=fill: own.mask(server.members, server.shares_for(client), fill)
        )
        masking[levels[client]].append(seconds)
        added, _ = timed(
            lambda client=client, masked=masked: server.add(client, masked.vector, masked.shares, masked.hashes)
        )
        prepared += added
        vectors[levels[client]] = masked.vector.nbytes
        beside = max(
            beside, len(text) + sum(map(len, [*keys[client], *shares[client] * 2, *masked.shares * 2, *masked.hashes]))
        )
    revealed, revealing = {}, {level: list[float]() for level in plans}
    for client in survivors:
        own = ClientRound(kept[client], Roster.from_bytes(text))
        seconds, revealed[client] = timed(
            lambda own=own, client=client: own.reveal(server.survivors, server.seeds_for(client))
        )
        revealing[levels[client]].append(seconds)
    unmasking, _ = timed(lambda: server.unmask(revealed))
    reading, _ = timed(server.sums)
    plain = _plain_seconds(state, rows, plans, [levels[client] for client in survivors])
    print(f"{number} clients, {len(survivors)} to the end")
    print(
        f"  server: {prepared + unmasking + reading:.2f} s (plain {plain:.2f} s); keys and shares of a client up and down {beside:,} bytes"
    )
    shares_of = roster.neighbours[0]
    for level, plan in plans.items():
        ratio = vectors[level] / (4 * plan.parameters)
        print(
            f"  client {level}: keys and shares {statistics.median(spent[level]):.3f} s, masks {statistics.median(masking[level]):.3f} s, unmasking {statistics.median(revealing[level]):.3f} s; {vectors[level]:,} bytes, {ratio:.4f} of plain"
        )
    overlaps = sum(min(plans["a"].parameters, plans[levels[other]].parameters) for other in range(1, number)) / 1e6
    per = statistics.median(masking["a"]) / overlaps * 1e3
    del shares_of
    return [
        Goal(
            f"{number} clients: bytes of masked changes, in times the plain ones, most",
            max(vectors[level] / (4 * plan.parameters) for level, plan in plans.items()),
            most=1.1,
        ),
        Goal("ms per million entries and neighbour at level a", per, most=20),
    ]


def _change(plan: Plan, state: State) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(own.shape, generator=generator) / 100 for name, own in plan.extract(state).items()}


def _plain_seconds(state: State, rows: Sequence[str], plans: Mapping[str, Plan], levels: Sequence[str]) -> float:
    """Return the seconds of the counting mean of as many replies."""
    replies = {level: plan.extract(state) for level, plan in plans.items()}

    def average() -> State:
        aggregator = Aggregator(state, rows)
        for level in levels:
            aggregator.add(plans[level], replies[level], labels=[0, 1])
        return aggregator.result()

    return timed(average)[0]


def measure_flower(state: State, number: int) -> None:
    """Print what a client of Flower's SecAgg+ takes, whose neighbours are all others and have its shapes."""
    arrays = [own.numpy().astype(np.float64) for own in state.values()]
    shapes = [own.shape for own in arrays]
    seeds = [bytes([client]) * 32 for client in range(number)]

    def mask() -> list:  # type: ignore[type-arg]
        own = quantize(arrays, 8.0, 2**22)
        for seed in seeds:  # its private mask, and one for each neighbour
            own = parameters_addition(own, pseudo_rand_gen(seed, 2**32, shapes))
        return parameters_mod(own, 2**32)

    masking, masked = timed(mask)
    sharing, _ = timed(lambda: [create_shares(seeds[0], 2 * number // 3 + 1, number) for _ in range(2)])
    size = sum(own.nbytes for own in masked)
    print(f"  Flower's SecAgg+, level a: shares {sharing:.2f} s, masks {masking:.2f} s; {size:,} bytes\n")
