"""Both sides of secure aggregation: sums are exact, what is masked is even, and nothing is revealed twice."""

import itertools
from contextlib import suppress
from dataclasses import replace
from secrets import token_bytes

import numpy as np
import pytest
import torch
from hypothesis import given

from heterofl_flwr.common.errors import ReplyError, RoundError
from heterofl_flwr.core.slice_plan import Region
from heterofl_flwr.secure.client import ClientRound, add_pairs, add_private, make_keys
from heterofl_flwr.secure.crypto import SHARE_BYTES
from heterofl_flwr.secure.roster import Roster
from heterofl_flwr.secure.server import ServerRound
from heterofl_flwr.secure.slices import as_state, overlap
from tests.secure import federations as module
from tests.secure.federations import federations, play, twin

WIDTHS = [8, 8, 8, 4, 4, 4, 2, 2, 1, 1]


def example(widths=WIDTHS, lost=None, least=3, labels=None, value=None):
    """Return a federation of these widths whose clients change everything by a number of their own."""
    plans = [module.plan_of(width) for width in widths]
    steps = [
        {name: np.full(shape, number + 1 if value is None else value) for name, shape in plan.shapes.items()}
        for number, plan in enumerate(plans)
    ]
    return module.Federation(plans, steps, labels or [None] * len(widths), lost or {}, least)


def check_exact(federation):
    """Compare what the server finds with the slow twin."""
    found = play(federation)
    for name, (total, count) in twin(federation).items():
        own, counts = found[name]
        assert counts.tolist() == count.tolist(), name
        assert np.where(counts > 0, own, 0).tolist() == total.tolist(), name


@given(federations())
def test_the_sum_is_exact_whoever_is_lost(federation):
    if len(federation.left("reveal")) >= module.threshold(federation):
        check_exact(federation)
        return
    # Where nothing is unmasked, an empty sum is all that is left.
    with suppress(RoundError, ReplyError):
        assert all((counts == 0).all() for _, counts in play(federation).values())


# What the server sees


def masked_of(federation, server_round=1):
    """Return the roster and, for each client, its round and its masked change."""
    answers = [make_keys() for _ in federation.plans]
    roster = federation.roster({number: keys for number, (keys, _) in enumerate(answers)}, server_round)
    clients = [ClientRound(kept, roster) for _, kept in answers]
    shares = {}
    for number, client in enumerate(clients):
        shares[number], kept = client.share_keys()
        clients[number] = ClientRound(kept, roster)
    server = ServerRound(roster, shares)
    masked = []
    for number, client in enumerate(clients):
        own, kept = client.mask(server.members, server.keys_for(number), federation.fill(number))
        clients[number] = ClientRound(kept, roster)
        masked.append(own)
        server.add(number, *own)
    return server, clients, masked


def left_masked(server, clients, masked, one, two, seeds):
    """Return what two clients hold of the first one's masked change, without all masks but those of the two.

    Of all others the server knows the private keys, and so their masks; of the first one the seeds, as after
    unmasking, or none.
    """
    roster, members = server.roster, server.members
    number = roster.clients[one][0]
    own, vector = roster.slices[number], masked[one][0].copy()
    pairs, known = np.zeros_like(vector), set(members) - {one, two}
    add_pairs(pairs, roster, roster.view(members), one, clients[one].private("mask"), known)
    vector -= pairs
    rings = roster.count(own, members)
    for ring, seed in seeds.items():
        add_private(vector, rings == ring, [seed], -1)
    both = roster.slices[roster.clients[two][0]]
    state, shared = as_state(vector.view(np.int32), own), overlap(own, both)
    parts = [Region(state[name], axes).read().flatten() for name, axes in shared.axes.items()]
    return torch.cat(parts).numpy().view(np.uint32)


def chi_squared(values, number=16):
    """Return the statistic of values that should be even from 0 to below a number."""
    found, expected = np.bincount(values, minlength=number), len(values) / number
    return ((found - expected) ** 2 / expected).sum()


UNLIKELY = 80  # with 15 degrees of freedom: once in a hundred billion


def test_masked_changes_are_even_with_any_two_unknown_clients(monkeypatch):
    federation, seeds = example([8, 8, 4, 4], least=2, value=1), []
    monkeypatch.setattr("heterofl_flwr.secure.client.token_bytes", lambda n: seeds.append(token_bytes(n)) or seeds[-1])
    drawn = {(*pair, known): [] for pair in itertools.combinations(range(4), 2) for known in (False, True)}
    while any(sum(map(len, words)) < 2000 for words in drawn.values()):
        seeds.clear()
        found = masked_of(federation)
        by_ring = [dict(zip(rings, [seeds.pop(0) for _ in rings], strict=True)) for rings in ([2, 4], [2, 4], [4], [4])]
        for (one, two, known), words in drawn.items():
            words.append(left_masked(*found, one, two, by_ring[one] if known else {}))
    for words in map(np.concatenate, drawn.values()):
        assert chi_squared(words & 15) < UNLIKELY
        assert chi_squared(words >> 28) < UNLIKELY
    # Of one client alone the server then knows all masks: those of the others were all taken off.
    alone = left_masked(*found, 0, 0, by_ring[0])
    assert set(alone.tolist()) == {1}
    assert chi_squared(alone) > UNLIKELY


@pytest.mark.parametrize("lost", [{0: "train"}, {0: "train", 1: "train"}, {0: "shares", 1: "train"}, {0: "keys"}])
def test_a_ring_with_too_few_holders_keeps_its_secret(lost):
    # Three clients hold the outer ring, of which three are needed.
    federation = example([8, 8, 8, *[4] * 7], lost=lost)
    spy = {}
    counts = play(federation, spy=spy)["hidden.bias"][1]
    assert counts[4:].tolist() == [0] * 4
    assert counts[:4].min() > 3
    server, left = spy["server"], spy["places"][2]
    rings = server._rings[server.roster.clients[left][0]]
    texts = {len(found[server.members.index(left)]) for found in spy["revealed"].values()}
    assert texts == {SHARE_BYTES}  # of the inner ring alone
    assert len(rings) == (2 if list(lost.values()) == ["train"] * len(lost) else 1)


def test_nothing_is_sent_of_entries_that_nobody_else_holds():
    server, _, masked = masked_of(example([8, 4, 4, 4], value=7))
    state = as_state(masked[0][0].view(np.int32), server.roster.slices[server.roster.clients[0][0]])
    assert state["hidden.bias"][4:].tolist() == [0] * 4  # which nothing masks
    assert set(state["hidden.bias"][:4].tolist()).isdisjoint([0, 7])


def test_no_two_claims_of_who_is_lost_give_both_secrets():
    federation = example([8] * 9)
    for told in range(10):
        server, clients, _ = masked_of(federation)
        seeds = keys = 0
        for number, client in enumerate(clients):
            survivors = [own for own in server.members if own != 0 or number < told]
            if number == 0 and told == 0:
                continue
            there = sorted(survivors)
            sealed = [server._sealed[other][number] for other in there]
            found = client.reveal(survivors, sealed)[0]
            seeds += 0 in there and len(found) > 0
            keys += 0 not in there and len(found) > 0
        assert min(seeds, keys) < server.roster.threshold


# What a client refuses


@pytest.fixture
def after_masking():
    return masked_of(example([8, 8, 8, 4]))


def test_nothing_is_answered_twice_or_out_of_turn(after_masking):
    server, clients, _ = after_masking
    first = clients[0]
    with pytest.raises(ReplyError, match="to shares out of turn, or a second time"):
        first.share_keys()
    with pytest.raises(ReplyError, match="to train out of turn, or a second time"):
        first.mask(server.members, server.keys_for(0), lambda *_: None)
    with pytest.raises(ReplyError, match="other clients than those that take part"):
        first.reveal([0, 1, 2, 9], server.seeds_for(0))
    with pytest.raises(ReplyError, match="to reveal out of turn"):
        ClientRound(make_keys()[1], server.roster).reveal(server.members, server.seeds_for(0))


def test_a_repeated_round_has_fresh_keys_and_forgets_the_old():
    (one, _), (two, kept) = make_keys(), make_keys()
    assert not set(one) & set(two)
    with pytest.raises(ReplyError, match="without this client's keys: it is that of another round"):
        ClientRound(kept, example([8, 8]).roster({0: one, 1: make_keys()[0]})).share_keys()


def test_replayed_and_changed_shares_are_left_out(after_masking):
    server, clients, _ = after_masking
    other = masked_of(example([8, 8, 8, 4]))[0]
    sealed = server.seeds_for(0)
    replayed = [sealed[0], other.seeds_for(0)[1], sealed[2][:-1] + bytes([sealed[2][-1] ^ 1]), sealed[1]]
    seeds = clients[0].reveal(server.members, replayed)
    assert [bool(own) for own in seeds] == [True, False, False, False]


def test_masks_are_others_where_other_members_are_told(after_masking):
    server, clients, _ = after_masking
    streams = []
    for members in ([0, 1, 2, 3], [0, 1, 2]):
        streams.append(np.zeros(server.roster.slices[0].parameters, np.uint32))
        add_pairs(streams[-1], server.roster, server.roster.view(members), 0, clients[0].private("mask"), {1})
    assert (streams[0] != streams[1]).all()


def test_clients_told_of_other_members_reveal_nothing():
    federation = example([8] * 9)
    server, clients, _ = masked_of(federation)
    # Client 8 is told of a smaller circle: what it seals then opens for nobody who was told of all.
    fresh = ClientRound(clients[8]._keep(next="train"), server.roster)
    some = list(range(2, 9))
    (_, shares, _), _ = fresh.mask(some, [server.keys_for(8)[number] for number in some], federation.fill(8))
    server._sealed[8] = [b"", b"", *shares]
    assert clients[3].reveal(server.members, server.seeds_for(3))[8] == b""


@pytest.mark.parametrize(
    ("told", "cause"),
    [
        ([0, 1, 2, 3, 4], "other clients than those that take part"),
        ([-1, 0, 1, 2], "other clients than those that take part"),
        ([0, 0, 0, 0], "not each of them once"),
        ([0, 1], "named 2 clients .* in all at least 3"),
        ([1, 2, 3], "expected this one"),
    ],
)
def test_clients_that_are_named_must_be_of_the_roster_and_enough(after_masking, told, cause):
    server, clients, _ = after_masking
    before = ClientRound(clients[0]._keep(next="train"), server.roster)
    for answer in (
        lambda sealed: before.mask(told, sealed, lambda *_: None),
        lambda sealed: clients[0].reveal(told, sealed),
    ):
        with pytest.raises(ReplyError, match=cause):
            answer([b""] * len(told))


@pytest.mark.parametrize("text", [None, b"", b"{}", b"[]", b'{"server_round": 1}'])
def test_what_is_no_roster_is_rejected(text):
    with pytest.raises(ReplyError, match="a roster that cannot be read"):
        Roster.from_bytes(text)


@pytest.mark.parametrize(("least", "alike"), [(3, True), (1, False)])
def test_a_roster_with_a_key_twice_or_rings_of_one_is_rejected(least, alike):
    keys = make_keys()[0]
    roster = example([8, 8], least=least).roster({0: keys, 1: keys if alike else make_keys()[0]})
    with pytest.raises(ReplyError, match="keys that come twice, rings of one client, or slices it lacks"):
        Roster.from_bytes(roster.to_bytes())


@pytest.mark.parametrize("number", [-1, 1])
def test_a_roster_with_a_client_of_no_slice_is_rejected(number):
    roster = example([8, 8]).roster({0: make_keys()[0], 1: make_keys()[0]})
    (_, *keys), other = roster.clients
    with pytest.raises(ReplyError, match="slices it lacks"):
        Roster.from_bytes(replace(roster, clients=[(number, *keys), other]).to_bytes())


# What the server refuses


def test_false_shares_end_the_round_and_not_the_model(after_masking):
    server, clients, _ = after_masking
    revealed = {
        number: client.reveal(server.members, server.seeds_for(number)) for number, client in enumerate(clients)
    }
    revealed[1][0] = bytes(len(revealed[1][0]))
    with pytest.raises(RoundError, match="4 shares of a secret of client 0 of the roster came, which are false"):
        server.unmask(revealed)


def test_false_shares_of_a_lost_clients_key_are_noticed():
    spy = {}
    play(example(lost={9: "train"}), spy=spy)
    false = {one: [*found[:9], bytes(len(found[9]))] for one, found in spy["revealed"].items()}
    with pytest.raises(RoundError, match="9 shares of a secret of client 9 of the roster came, which are false"):
        spy["server"].unmask(false)


def test_a_masked_change_that_does_not_fit_changes_nothing(after_masking):
    server, _, masked = after_masking
    before = server._total.copy()
    vector, sealed, hashes = masked[0]
    for reply in [
        (vector[:-1], sealed, hashes),
        (vector.astype(np.int64), sealed, hashes),
        (vector, sealed[:-1], hashes),
        (vector, sealed, hashes[:-1]),
    ]:
        with pytest.raises(ReplyError, match="reply refused"):
            server.add(0, *reply)
    assert (server._total == before).all()


def test_an_impossible_number_of_clients_in_a_row_is_noticed():
    federation = example([8, 8, 8])
    fill = federation.fill
    federation.fill = lambda number: lambda *told: fill(number)(*told) + np.uint32(5 * (number == 0))
    with pytest.raises(RoundError, match=r"that count in the rows of last\.\w+ is impossible"):
        play(federation)
