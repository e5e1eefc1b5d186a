"""Federations in memory: both sides of secure aggregation without Flower, and a slow twin in plain integers."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from hypothesis import strategies as st

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.core import Plan
from heterofl_flwr.core.slice_rules import SliceRule, make_slice_function
from heterofl_flwr.secure.client import ClientRound, MaskedRounds, make_keys
from heterofl_flwr.secure.fixed_point import largest_steps
from heterofl_flwr.secure.overlaps import COUNTS
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.server import ServerRound

WIDTH, CLASSES, INPUTS = 8, 3, 2
SHAPES = {
    "hidden.weight": (WIDTH, INPUTS),
    "hidden.bias": (WIDTH,),
    "last.weight": (CLASSES, WIDTH),
    "last.bias": (CLASSES,),
    "no_entries": (0, WIDTH),
}
ROWS = ("last.weight", "last.bias")
PHASES = ("keys", "shares", "train", "reveal")


def plan_of(width, rule="prefix", server_round=1, partition=0):
    """Return the plan of a client whose hidden layer has so many units."""
    local = {name: tuple(width if size == WIDTH else size for size in shape) for name, shape in SHAPES.items()}
    function = make_slice_function(rule, seed=0, server_round=server_round, rate=width / WIDTH, partition=partition)
    return Plan.between(SHAPES, local).sliced(function)


@dataclass
class Federation:
    """Clients' plans, their changes in steps, their classes (None for all), and in which phase each is lost."""

    plans: list
    steps: list
    labels: list
    lost: dict = field(default_factory=dict)
    least: int = 3
    run: int = 1

    def roster(self, keys, server_round=1):
        """Return the roster of the clients whose keys came."""
        return Roster.of(
            [self.plans[number] for number in keys],
            list(keys.values()),
            run=self.run,
            server_round=server_round,
            least=self.least,
            bound=1.0,
            rows=ROWS,
            extra_rows=True,
            grid=(),
        )

    def left(self, phase):
        """Return the clients that have answered a phase and all before."""
        after = PHASES[PHASES.index(phase) + 1 :]
        return [number for number in range(len(self.plans)) if self.lost.get(number, "") in ("", *after)]

    def fill(self, number):
        """Return what gives a client's vector: its steps, and 1 for each row that counts."""

        def vector(roster, own, clients):
            parts, labels = [], self.labels[number]
            row = np.array([labels is None or label in labels for label in range(CLASSES)])
            for name, shape in own.shapes.items():
                by_row = row.reshape(-1, *[1] * (len(shape) - 1))
                if name.startswith(COUNTS):
                    parts.append(np.broadcast_to(by_row, shape).astype(np.int32).ravel())
                    continue
                own_steps = np.asarray(self.steps[number][name], np.int64)
                parts.append((own_steps * by_row if name in ROWS else own_steps).astype(np.int32).ravel())
            return np.concatenate(parts).view(np.uint32)

        return vector


class Crash(Exception):
    """The server has crashed."""


def play(federation, *, spy=None, lie=lambda phase, client, answer: answer, rounds=None, crash=None):
    """Return the sums and counts of a federation as its server computes them, through all phases.

    ``lie(phase, client, answer)`` returns what a client answers instead; ``rounds`` are the masked rounds of each
    client; the server crashes after the phase ``crash``.
    """
    rounds = rounds or [MaskedRounds({}) for _ in federation.plans]
    answers = {number: make_keys() for number in federation.left("keys")}
    roster = federation.roster({number: keys for number, (keys, _) in answers.items()})
    places = dict(zip(answers, range(len(answers)), strict=True))
    clients = {places[number]: ClientRound(kept, roster) for number, (_, kept) in answers.items()}
    shares = {}
    for number in federation.left("shares"):
        own = places[number]
        dealt, kept = clients[own].share_keys()
        shares[own] = lie("shares", number, dealt)
        clients[own] = ClientRound(kept)  # which has kept the roster
    server, vectors = ServerRound(roster, shares), []
    spy = {} if spy is None else spy
    spy.update(server=server, clients=clients, masked=vectors, places=places)
    _crash_at("shares", crash)
    for number in federation.left("train"):
        own, fill = places[number], federation.fill(number)
        with suppress(ReplyError):  # it is lost
            masked, kept = clients[own].mask(server.members, server.keys_for(own), fill, rounds[number])
            clients[own] = ClientRound(kept, roster)
            vectors.append(masked)
            server.add(own, lie("train", number, masked))
    _crash_at("train", crash)
    revealed, left = {}, [number for number in federation.left("reveal") if places[number] in server.survivors]
    for number in left:
        own = places[number]
        answer, kept = clients[own].reveal(server.survivors, server.seeds_for(own))
        revealed[own] = lie("reveal", number, answer)
        clients[own] = ClientRound(kept, roster)
    spy["revealed"] = revealed
    server.unmask(revealed)
    if rows := server.row_numbers():
        answers = {places[number]: lie("rows", number, clients[places[number]].reveal_rows(rows)) for number in left}
        server.unmask_rows(rows, answers)
    return {name: (total.numpy(), counts.numpy()) for name, (total, counts) in server.sums().items()}


def _crash_at(phase, crash):
    if phase == crash:
        raise Crash


def holds(plan, name, index):
    """Whether a plan holds an entry."""
    return all(
        at in (axis.index if axis.index is not None else range(axis.local_size))
        for at, axis in zip(index, plan.axes[name], strict=True)
    )


def twin(federation):
    """Return sums and counts entry by entry, in Python's integers: the protocol's promise, without any masks."""
    members, survivors = federation.left("shares"), federation.left("train")
    found, closed = {}, _closed(federation, members, survivors)
    few = {ring: _few(federation, ring, members, survivors) for ring in range(len(members) + 1)}
    for name, shape in SHAPES.items():
        total, count = np.zeros(shape, object), np.zeros(shape, object)
        for index in np.ndindex(*shape):
            before = [number for number in members if holds(federation.plans[number], name, index)]
            ring = len(before)
            # The ring is everything that equally many held before; each entry of it must have enough who are left.
            if ring < federation.least or ring in closed:
                continue
            counted = _counted(federation, name, index, survivors)
            if name in ROWS and index[0] in few[ring]:
                continue
            for number in counted:
                local = tuple(
                    at if axis.index is None else axis.index.index(at)
                    for at, axis in zip(index, federation.plans[number].axes[name], strict=True)
                )
                total[index] += int(federation.steps[number][name][local])
                count[index] += 1
        found[name] = total, count
    return found


def _counted(federation, name, index, survivors):
    """Return the clients whose changes count in an entry."""
    there = {number for number in survivors if holds(federation.plans[number], name, index)}
    of_class = {
        number for number in there if federation.labels[number] is None or index[0] in federation.labels[number]
    }
    return of_class if name in ROWS else there


def _few(federation, ring, members, survivors):
    """Return the rows with an entry of this ring in which too few clients count, and at least one."""
    return {
        index[0]
        for name in ROWS
        for index in np.ndindex(*SHAPES[name])
        if sum(holds(federation.plans[number], name, index) for number in members) == ring
        and 0 < len(_counted(federation, name, index, survivors)) < federation.least
    }


def _closed(federation, members, survivors):
    """Return the rings with an entry that fewer than the least number still hold."""
    closed = set()
    for name, shape in SHAPES.items():
        for index in np.ndindex(*shape):
            before = {number for number in members if holds(federation.plans[number], name, index)}
            if len(before & set(survivors)) < federation.least:
                closed.add(len(before))
    return closed


@st.composite
def federations(draw, most=9):
    """Draw a federation: slices by any rule or by several, changes up to the bound, classes, who is lost and when."""
    clients = draw(st.integers(3, most))
    rule = draw(st.sampled_from(get_args(SliceRule)))
    server_round = draw(st.integers(1, 20))
    widths = draw(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=clients, max_size=clients))
    plans = [plan_of(width, rule, server_round, number) for number, width in enumerate(widths)]
    most_steps = largest_steps(clients)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = []
    for plan in plans:
        own = {name: generator.integers(-most_steps, most_steps + 1, shape) for name, shape in plan.shapes.items()}
        if draw(st.booleans()):  # everything at the bound
            own = {name: np.full_like(one, most_steps) for name, one in own.items()}
        steps.append(own)
    labels = [draw(st.none() | st.lists(st.integers(0, CLASSES - 1), unique=True)) for _ in range(clients)]
    lost = draw(st.dictionaries(st.integers(0, clients - 1), st.sampled_from(PHASES), max_size=clients))
    return Federation(plans, steps, labels, lost, draw(st.integers(2, 4)))


def threshold(federation):
    """Return how many clients must answer to the end."""
    return 2 * len(federation.left("keys")) // 3 + 1
