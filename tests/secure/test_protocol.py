"""Both sides of secure aggregation: sums are exact, what is masked is even, and nothing is revealed twice."""

import itertools
from contextlib import suppress
from dataclasses import replace
from secrets import token_bytes

import numpy as np
import pytest
import torch
from hypothesis import given

from heterofl_flwr.client.state import NodeFiles
from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.core.slice_plan import Region
from heterofl_flwr.secure import crypto
from heterofl_flwr.secure.client import ClientRound, Dealt, Masked, MaskedRounds, make_keys
from heterofl_flwr.secure.crypto import SHARE_BYTES
from heterofl_flwr.secure.masks import add_pairs, add_private, places_of
from heterofl_flwr.secure.overlaps import COUNTS, as_state, overlap
from heterofl_flwr.secure.roster import Roster
from tests.secure import federations as module
from tests.secure.federations import Crash, federations, play, twin

WIDTHS = [8, 8, 8, 4, 4, 4, 2, 2, 1, 1]


def example(widths=WIDTHS, lost=None, least=3, labels=None, value=None):
    """Return a federation of these widths whose clients change everything by a number of their own."""
    plans = [module.plan_of(width) for width in widths]
    steps = [
        {name: np.full(shape, number + 1 if value is None else value) for name, shape in plan.shapes.items()}
        for number, plan in enumerate(plans)
    ]
    return module.Federation(plans, steps, labels or [None] * len(widths), lost or {}, least)


def check_exact(federation, found):
    """Compare what the server has found with the slow twin."""
    for name, (total, count) in twin(federation).items():
        own, counts = found[name]
        assert counts.tolist() == count.tolist(), name
        assert np.where(counts > 0, own, 0).tolist() == total.tolist(), name


@given(federations())
def test_the_sum_is_exact_whoever_is_lost(federation):
    if len(federation.left("reveal")) >= module.threshold(federation):
        check_exact(federation, play(federation))
        return
    # Where nothing is unmasked, an empty sum is all that is left.
    with suppress(ReplyError):
        assert all((counts == 0).all() for _, counts in play(federation).values())


# What the server sees


def masked_of(federation):
    """Return the server and, for each client, its round and its masked change."""
    spy = {}
    with suppress(Crash):
        play(federation, spy=spy, crash="train")
    return spy["server"], list(spy["clients"].values()), spy["masked"]


def left_masked(server, clients, masked, one, two, seeds):
    """Return what two clients hold of the first one's masked change, without all masks but those of the two.

    Of all others the server knows the private keys, and so their masks; of the first one the seeds, as after
    unmasking, or none.
    """
    roster, members = server.roster, server.members
    number = roster.clients[one][0]
    own, vector = roster.slices[number], masked[one].vector.copy()
    pairs, known = np.zeros_like(vector), set(members) - {one, two}
    add_pairs(pairs, roster, roster.view(members), one, clients[one].private("mask"), known)
    vector -= pairs
    places = places_of(roster.parts(own, roster.count(own, members)), roster)
    for part, seed in seeds.items():
        add_private(vector, places[part], [seed], -1)
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
    while any(sum(map(len, words)) < 500 for words in drawn.values()):
        seeds.clear()
        found = masked_of(federation)
        by_client = [found[0]._parts[number] for number, *_ in found[0].roster.clients]
        by_part = [dict(zip(parts, [seeds.pop(0) for _ in parts], strict=True)) for parts in by_client]
        for (one, two, known), words in drawn.items():
            words.append(left_masked(*found, one, two, by_part[one] if known else {}))
    for words in map(np.concatenate, drawn.values()):
        assert chi_squared(words & 15) < UNLIKELY
        assert chi_squared(words >> 28) < UNLIKELY
    # Of one client alone the server then knows all masks: those of the others were all taken off.
    alone = left_masked(*found, 0, 0, by_part[0])
    assert set(alone.tolist()) == {1}
    assert chi_squared(alone) > UNLIKELY


@pytest.mark.parametrize("lost", [{0: "train"}, {0: "shares", 1: "train"}, {0: "keys"}])
def test_a_ring_with_too_few_holders_keeps_its_secret(lost):
    # Three clients hold the outer ring, of which three are needed.
    federation = example([8, 8, 8, *[4] * 7], lost=lost)
    spy = {}
    counts = play(federation, spy=spy)["hidden.bias"][1]
    assert counts[4:].tolist() == [0] * 4
    assert counts[:4].min() > 3
    server, left = spy["server"], spy["places"][2]
    rings = {server.roster.ring_of(part) for part in server._parts[server.roster.clients[left][0]]}
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
    server, clients, _ = masked_of(federation)
    for told in range(10):
        seeds = keys = 0
        for number, client in enumerate(clients):
            survivors = [own for own in server.members if own != 0 or number < told]
            if number == 0 and told == 0:
                continue
            there = sorted(survivors)
            dealt = [server._seeds[other][0] for other in there]
            seeds_of = Dealt([own.sealed[number] for own in dealt], [own.hashes[number] for own in dealt])
            found = client.reveal(survivors, seeds_of)[0][0]
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
        first.mask(server.members, server.keys_for(0), lambda *_: None, MaskedRounds({}))
    with pytest.raises(ReplyError, match="other clients than those that take part"):
        first.reveal([0, 1, 2, 9], server.seeds_for(0))
    with pytest.raises(ReplyError, match="to reveal out of turn"):
        ClientRound(make_keys()[1], server.roster).reveal(server.members, server.seeds_for(0))


def test_nodes_that_share_a_folder_learn_what_they_need(tmp_path):
    files = NodeFiles.of({"states-path": str(tmp_path)})
    MaskedRounds({}, files).note(run=1, server_round=1)
    with pytest.raises(ReplyError, match="nodes that share a states-path need a partition-id each"):
        MaskedRounds({}, files).note(run=1, server_round=1)


def test_a_repeated_round_has_fresh_keys_and_forgets_the_old():
    (one, _), (two, kept) = make_keys(), make_keys()
    assert not set(one) & set(two)
    with pytest.raises(ReplyError, match="without this client's keys: it is that of another round"):
        ClientRound(kept, example([8, 8]).roster({0: one, 1: make_keys()[0]})).share_keys()


def test_replayed_and_changed_shares_are_left_out(after_masking):
    server, clients, _ = after_masking
    other = masked_of(example([8, 8, 8, 4]))[0].seeds_for(0)
    sealed, hashes = server.seeds_for(0)
    replayed = [sealed[0], other.sealed[1], sealed[2][:-1] + bytes([sealed[2][-1] ^ 1]), sealed[1]]
    seeds, _ = clients[0].reveal(server.members, Dealt(replayed, [hashes[0], other.hashes[1], *hashes[2:]]))
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
    keys = Dealt(*([column[number] for number in some] for column in server.keys_for(8)))
    (_, shares, _), _ = fresh.mask(some, keys, federation.fill(8), MaskedRounds({}))
    server._seeds[8] = Dealt(*([b"", b"", *column] for column in shares)), server._seeds[8][1]
    assert clients[3].reveal(server.members, server.seeds_for(3))[0][8] == b""


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
        lambda sealed: before.mask(told, sealed, lambda *_: None, MaskedRounds({})),
        lambda sealed: clients[0].reveal(told, sealed),
    ):
        with pytest.raises(ReplyError, match=cause):
            answer(Dealt([b""] * len(told), [b""] * len(told)))


@pytest.mark.parametrize("text", [None, b"", b"{}", b"[]", b'{"server_round": 1}'])
def test_what_is_no_roster_is_rejected(text):
    with pytest.raises(ReplyError, match="a roster that cannot be read"):
        Roster.from_bytes(text)


@pytest.mark.parametrize(
    ("least", "alike", "number"), [(3, True, 0), (1, False, 0), (3, False, -1), (3, False, 1)], ids=str
)
def test_a_roster_with_a_key_twice_rings_of_one_or_an_unknown_slice_is_rejected(least, alike, number):
    keys = make_keys()[0]
    roster = example([8, 8], least=least).roster({0: keys, 1: keys if alike else make_keys()[0]})
    (_, *pair), other = roster.clients
    with pytest.raises(ReplyError, match="equal keys, sums of a single client, or unknown slices"):
        Roster.from_bytes(replace(roster, clients=[(number, *pair), other]).to_bytes())


# What the server refuses


TEN = [8, 8, 8, 8, 8, 4, 4, 4, 4, 4]


def false_shares(texts):
    return [bytes(len(text)) for text in texts]


def short_shares(texts):
    return [text[:-SHARE_BYTES] for text in texts]


def no_shares(texts):
    return [b""] * len(texts)


def false_digests(masked):
    return masked._replace(digests=[bytes(32)] * len(masked.digests))


@pytest.mark.parametrize(
    ("liars", "change", "phase"),
    [
        ({3}, false_shares, "reveal"),
        ({0, 9}, short_shares, "rows"),
        ({1, 4, 7}, no_shares, "reveal"),
        ({1, 4, 7}, false_digests, "train"),
    ],
)
def test_one_to_three_liars_of_ten_are_named_and_the_sum_is_that_of_all(liars, change, phase):
    def lie(when, client, answer):
        return change(answer) if when == phase and client in liars else answer

    federation, spy = example(TEN), {}
    check_exact(federation, play(federation, lie=lie, spy=spy))
    assert spy["server"].liars.keys() == liars


def test_a_liar_about_a_lost_clients_key_is_named():
    federation, spy = example(TEN, lost={9: "train"}), {}

    def lie(when, client, answer):
        return [*answer[:9], bytes(len(answer[9]))] if when == "reveal" and client == 2 else answer

    check_exact(federation, play(federation, lie=lie, spy=spy))
    assert spy["server"].liars == {2: "it revealed false shares"}


@pytest.mark.parametrize("liars", [{0, 9}, {5, 9}], ids=str)
def test_shares_that_do_not_fit_their_hashes_close_their_dealers_slice_and_name_the_dealer(liars):
    federation, spy = example(TEN), {}

    def lie(when, client, answer):
        if when != "train" or client not in liars:
            return answer
        false = [bytes(len(own)) for own in answer.shares.hashes]
        return answer._replace(shares=answer.shares._replace(hashes=false))

    found = play(federation, lie=lie, spy=spy)
    assert spy["server"].liars.keys() == liars
    inner, outer = np.split(found["hidden.bias"][1], 2)
    assert not inner.any()
    assert outer.tolist() == [0 if 0 in liars else 5] * 4  # of the dealers, client 0 alone holds the outer half


def test_shares_on_no_polynomial_close_their_dealers_slice_and_name_the_dealer(monkeypatch):
    federation, spy, split, mask = example(TEN), {}, crypto.split, ClientRound.mask

    def crooked(secret, threshold, number):
        return [bytes(SHARE_BYTES), *split(secret, threshold, number)[1:]]

    def mask_crookedly(client, *arguments):
        with monkeypatch.context() as patch:
            if client.number == 7:
                patch.setattr(crypto, "split", crooked)
            return mask(client, *arguments)

    monkeypatch.setattr(ClientRound, "mask", mask_crookedly)
    found = play(federation, spy=spy)
    assert spy["server"].liars == {7: "the secret of its shares is not the one that it announced"}
    inner, outer = np.split(found["hidden.bias"][1], 2)
    assert not inner.any()  # which client 7 holds
    assert outer.tolist() == [5] * 4


def test_no_three_accusers_make_an_innocent_dealer_a_liar():
    federation, spy = example(TEN), {}

    def lie(when, client, answer):  # three helpers have, they say, no shares of these dealers
        if when != "reveal" or client not in (7, 8, 9):
            return answer
        return [b"" if dealer in (2, 5) else text for dealer, text in enumerate(answer)]

    found = play(federation, lie=lie, spy=spy)
    assert found["hidden.bias"][1].tolist() == twin(federation)["hidden.bias"][1].tolist()
    assert not spy["server"].liars


def test_a_masked_change_that_does_not_fit_changes_nothing(after_masking):
    server, _, masked = after_masking
    before = server._total.copy()
    vector, (sealed, hashes), digests = masked[0]
    for reply in [
        (vector[:-1], (sealed, hashes), digests),
        (vector.astype(np.int64), (sealed, hashes), digests),
        (vector, (sealed[:-1], hashes), digests),
        (vector, (sealed, hashes[:-1]), digests),
        (vector, (sealed, hashes), digests[:-1]),
    ]:
        with pytest.raises(ReplyError, match="reply refused"):
            server.add(0, Masked(reply[0], Dealt(*reply[1]), reply[2]))
    assert (server._total == before).all()


def test_an_impossible_number_of_clients_closes_the_row_alone():
    federation, spy = example([8, 8, 8, 8], labels=[[0, 1]] * 4), {}
    fill = federation.fill

    def liar(roster, plan, clients):
        vector = fill(0)(roster, plan, clients)
        for name in ("last.weight", "last.bias"):
            as_state(vector.view(np.int32), plan)[COUNTS + name][0] += 5
        return vector

    federation.fill = lambda number: liar if number == 0 else fill(number)
    found = play(federation, spy=spy)
    assert found["last.weight"][1][:, 0].tolist() == [0, 4, 0]
    assert found["hidden.weight"][1].min() == 4
    assert spy["server"].impossible == ["last.weight", "last.bias"]
    closed = spy["server"].closed()
    assert closed["last.bias"].tolist() == [True, False, False]  # of the third class nobody has rows
    assert not closed["hidden.weight"].any()


# Rows of few clients


def test_rows_of_two_clients_stay_closed():
    # All ten hold the row of class 2; two have changed it.
    labels = [[0, 1, 2] if number < 2 else [0, 1] for number in range(10)]
    federation, spy = example(TEN, labels=labels), {}
    found = play(federation, spy=spy)
    for name in module.ROWS:
        total, count = found[name]
        assert not count[2].any()
        assert count[:2].all()
        assert not np.isin(total[2], np.arange(64)).any()  # masked still
    check_exact(federation, found)
    server, clients = spy["server"], spy["clients"]
    rows = [part for part in server._parts[0] if server.roster.is_rows(part)]
    with pytest.raises(ReplyError, match="classifier rows that 2 clients trained, expected at least 3"):
        clients[0].reveal_rows(dict.fromkeys(rows, 2))
    for part in (0, 10 * (server.roster.row_groups + 1), 10**6):
        with pytest.raises(ReplyError, match="rows of a ring that is open"):
            clients[0].reveal_rows({part: 10})


def test_more_classes_than_groups_share_seeds(monkeypatch):
    monkeypatch.setattr("heterofl_flwr.secure.roster.ROW_GROUPS", 2)  # classes 0 and 1, and 2
    labels = [[0, 2] if number else [0, 1, 2] for number in range(10)]
    found = play(example(TEN, labels=labels))
    assert not found["last.bias"][1][:2].any()
    assert found["last.bias"][1][2] == 10
