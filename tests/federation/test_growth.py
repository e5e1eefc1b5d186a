"""Slices that grow: rates by round written out, and bounded bytes."""

from heterofl_flwr import Buffered
from heterofl_flwr.core import Mix
from tests.federation.tiny import play

MIX = "a1-b1-c1"
ROUNDS = [[0.25] * 6, [0.5, 0.5, 0.5, 0.5, 0.25, 0.25], [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]]


def test_levels_follow_the_rounds_up_to_each_clients_own_and_bytes_never_exceed_it():
    found, plain = (play(None, MIX, 6, 4, **options) for options in ({"growth": 1}, {}))
    rates = [list(record.rates.values()) for record in found.records]
    assert rates == [*ROUNDS, ROUNDS[-1]]
    federation = found.federation
    sizes = {rate: federation.architecture.plan(rate).parameters for rate in (1.0, 0.5, 0.25)}
    for record, usual in zip(found.records, plain.records, strict=True):
        assert record.bytes_down <= usual.bytes_down
        assert all(sizes[rate] <= sizes[own] for rate, own in zip(record.rates.values(), ROUNDS[-1], strict=True))
    assert found.records[0].bytes_down < plain.records[0].bytes_down


def test_levels_grow_by_steps_where_rounds_do_not_wait():
    found = play(None, MIX, 6, 4, growth=1, asynchronous=Buffered(size=3, concurrency=3))
    assert set(found.records[0].rates.values()) == {0.25}
    assert max(rate for record in found.records for rate in record.rates.values()) == Mix.parse(MIX).global_rate
