"""The parts of secure aggregation: shares, keys, streams, fixed point."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.secure import crypto
from heterofl_flwr.secure.fixed_point import LARGEST_SUM, check_finite, largest_steps, to_steps


@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.data())
def test_any_shares_up_to_the_threshold_give_the_secret(secret, number, data):
    threshold = data.draw(st.integers(1, number))
    shares = dict(enumerate(crypto.split(secret, threshold, number)))
    some = data.draw(st.lists(st.sampled_from(range(number)), min_size=threshold, unique=True))
    assert crypto.combine_shares({place: shares[place] for place in some}, threshold) == secret


def test_fewer_shares_do_not_give_the_secret():
    secret = bytes(range(32))
    shares = dict(enumerate(crypto.split(secret, 3, 3)[:2]))
    assert crypto.combine_shares(shares, 2) != secret


def test_the_field_is_that_of_a_prime():
    odd = crypto.PRIME - 1
    twos = (odd & -odd).bit_length() - 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):  # Miller and Rabin's test
        powers = [pow(base, odd >> twos << place, crypto.PRIME) for place in range(twos + 1)]
        assert powers[0] == 1 or crypto.PRIME - 1 in powers[:-1]
    assert crypto.PRIME > 2**256


def test_shares_of_no_secret_are_noticed():
    assert crypto.combine_shares({0: (crypto.PRIME - 1).to_bytes(crypto.SHARE_BYTES, "big")}, 1) == b""


def test_both_sides_agree_for_each_purpose_alone():
    (one, one_public), (two, two_public) = crypto.new_pair(), crypto.new_pair()
    assert crypto.agree(one, two_public, b"round", "mask", 0, 1) == crypto.agree(
        two, one_public, b"round", "mask", 0, 1
    )
    purposes = [
        (b"round", "mask", 0, 1),
        (b"other", "mask", 0, 1),
        (b"round", "share", 0, 1),
        (b"round", "mask", 1, 0),
        (b"round", "mask", 0, 11),
    ]
    keys = {crypto.agree(one, two_public, *purpose) for purpose in purposes}
    assert len(keys) == len(purposes)


def test_all_bits_of_a_key_count():
    # Flower's SecAgg+ folds 32 bytes to four, so that two of these keys would give equal masks.
    keys = [bytes(32), *(bytes(4 * place) + bytes([7, 0, 0, 0]) + bytes(28 - 4 * place) for place in range(8))]
    streams = []
    for key in keys:
        streams.append(np.zeros(1000, np.uint32))
        crypto.add_stream(streams[-1], key)
    for one, two in itertools.combinations(streams, 2):
        assert (one != two).mean() > 0.99
    crypto.add_stream(streams[0], keys[0], -1)
    assert not streams[0].any()


def test_a_long_stream_goes_on_where_a_short_one_ends():
    short, long = np.zeros(10, np.uint32), np.zeros(2**17 + 5, np.uint32)
    for total in (short, long):
        crypto.add_stream(total, bytes(32))
    assert (short == long[:10]).all()
    assert len(np.unique(long)) > 0.99 * len(long)


@pytest.mark.parametrize("clients", [2, 10, 1000])
def test_steps_are_right_on_average_and_never_overflow(clients):
    bound, most = 2.0, largest_steps(clients)
    assert clients * most <= LARGEST_SUM
    generator = torch.Generator().manual_seed(0)
    step = bound / most
    changes = {"w": torch.full((100_000,), 0.3 * step, dtype=torch.float64), "b": torch.tensor([5.0, -5.0, 2.0])}
    steps = to_steps(changes, bound, clients, generator)
    assert set(steps["w"].tolist()) == {0.0, 1.0}
    assert steps["w"].mean().item() == pytest.approx(0.3, abs=0.01)
    assert steps["b"].tolist() == [most, -most, most]


def test_a_change_that_is_no_number_is_named():
    with pytest.raises(ReplyError, match="parameter w changed to NaN or infinity"):
        check_finite({"w": torch.tensor([float("nan")])})
