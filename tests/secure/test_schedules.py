"""Random schedules of crashes, resumes, losses and lies: what the sums of one run tell of few clients."""

import itertools
import random
from contextlib import suppress

import numpy as np
import pytest

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.secure.client import MaskedRounds
from tests.secure.federations import CLASSES, Crash, Federation, plan_of, play

CLIENTS_IN = np.array([bin(total).count("1") for total in range(2**7)])
"""The number of clients whose changes a total has."""


def lies_of(generator, clients):
    """Return a function that answers for liars: false shares, no shares, false hashes, or hashes of other seeds."""
    kinds = {client: generator.choice(["shares", "nothing", "hashes", "digests"]) for client in clients}

    def lie(phase, client, answer):
        kind = kinds.get(client)
        if phase in ("reveal", "rows") and kind in ("shares", "nothing"):
            return [bytes(len(text)) if kind == "shares" else b"" for text in answer]
        if (phase, kind) == ("train", "hashes"):
            false = [bytes(len(text)) for text in answer.shares.hashes]
            return answer._replace(shares=answer.shares._replace(hashes=false))
        if (phase, kind) == ("train", "digests"):
            return answer._replace(digests=[bytes(32)] * len(answer.digests))
        return answer

    return lie


def attempts(seed):
    """Return the sums of all attempts at one round, as totals and counts by parameter, and the minimum of clients.

    In every attempt client ``n`` changes each entry by 2^n, so a total says whose changes it has. Clients remember
    what they have masked, and nothing else, for the server crashes and begins the round anew with those who are there.
    """
    generator, sums = random.Random(seed), []
    number, least = generator.randint(4, 7), generator.choice([2, 3])
    plans = [plan_of(generator.choice([8, 8, 4])) for _ in range(number)]
    steps = [
        {name: np.full(shape, 2**client) for name, shape in plan.shapes.items()} for client, plan in enumerate(plans)
    ]
    labels = [generator.sample(range(CLASSES), generator.randint(1, CLASSES)) for _ in range(number)]
    rounds = [MaskedRounds({}) for _ in range(number)]
    for _ in range(generator.randint(2, 3)):
        phases = {client: generator.choice(["keys", "shares", "train", "reveal"]) for client in range(number)}
        lost = {client: phase for client, phase in phases.items() if generator.random() < 0.15}
        if generator.random() < 0.5:  # the server knows who took part before
            lost |= {client: "keys" for client in range(number) if rounds[client].last(1)}
        liars = generator.sample(range(number), generator.choice([0, 0, 1, 2]))
        crash = generator.choice([None, None, None, "shares", "train"])
        with suppress(Crash, ReplyError):
            federation = Federation(plans, steps, labels, lost, least)
            sums.append(play(federation, lie=lies_of(generator, liars), rounds=rounds, crash=crash))
    return sums, least


def check(seed):
    """Compare each sum with nothing and with each other sum; return how many were opened."""
    sums, least = attempts(seed)
    opened = [
        {name: np.where(counts > 0, totals, 0).astype(np.int64) for name, (totals, counts) in own.items()}
        for own in sums
    ]
    for own, (name, (_, counts)) in (
        (own, item) for own, both in zip(opened, sums, strict=True) for item in both.items()
    ):
        assert (CLIENTS_IN[own[name]] == counts).all(), (seed, name)
        assert ((counts == 0) | (counts >= least)).all(), (seed, name)
    for one, two in itertools.combinations(opened, 2):
        for name in one.keys() & two.keys():
            both = (one[name] > 0) & (two[name] > 0)
            different = CLIENTS_IN[one[name] ^ two[name]][both]
            assert (different >= least).all(), (seed, name)
    return sum(any(own.any() for own in state.values()) for state in opened)


def test_no_two_sums_differ_by_fewer_clients_than_the_minimum():
    assert sum(map(check, range(16))) > 5


@pytest.mark.release
def test_no_two_sums_of_ten_thousand_schedules_differ_by_fewer_clients_than_the_minimum():
    assert sum(map(check, range(10_000))) > 5000
