"""The line that a strategy logs after the training of each round, in any Flower app."""

import logging

import pytest

from heterofl_flwr import Evaluation
from heterofl_flwr.classic import HeteroFL as Classic
from heterofl_flwr.core.formatting import size
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import Console
from tests.classic.fakes import Fake, fit_all, manager_of
from tests.federation.tiny import build, make_app, play


def crash(message, context):
    raise RuntimeError("the worker is gone")


@pytest.fixture
def lines(caplog):
    """Return a function that gives what Flower's log shows of rounds."""
    caplog.set_level(logging.INFO, logger="flwr")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "flwr" and "round" in r.getMessage().lower()]


def run(**options):
    return play(make_app(odd={2: crash}), "a1-c1", 4, 2, evaluation=Evaluation(every=2), **options)


def test_levels_with_their_clients_and_bytes_and_who_failed(lines):
    log = run().log
    sizes = {level: log.bytes_by_level[level] // 2 for level in ("a", "c")}
    assert sum(log.bytes_by_level.values()) == log.bytes_down
    assert sizes["a"] > sizes["c"]
    found = [line for line in lines() if line.startswith("round ")]
    sent = f"a 2x{size(sizes['a'])} (clients 0-1), c 2x{size(sizes['c'])} (clients 2-3)"
    up = size(2 * sizes["a"] + sizes["c"])
    assert found == [f"round {number}: {sent}; up {up}, 1 failed" for number in (1, 2)]


def test_metrics_have_a_line_of_their_own(lines):
    run()
    first, second = [line for line in lines() if line.startswith("[ROUND")]
    assert first.startswith("[ROUND 1/2] loss ")
    assert "coverage 1" in second


def test_a_callback_that_prints_rounds_does_it_instead(lines, capsys):
    run(callbacks=[Console()])
    assert lines() == []
    assert "round 2/2 took=" in capsys.readouterr().out


def test_in_the_classic_api_too(lines):
    fakes = [Fake(str(number), 1.0 + number) for number in range(3)]
    strategy, manager = Classic(build, "a1-c1", wait=1.0), manager_of(*fakes)
    parameters = strategy.initialize_parameters(client_manager=manager)
    strategy.aggregate_fit(1, fit_all(strategy.configure_fit(1, parameters, manager)), [])
    assert [line.partition(":")[0] for line in lines()] == ["round 1"]
    assert "c 2x" in lines()[0]


def filled(rates):
    log = RoundRecord(
        server_round=10,
        seconds=0.0,
        learning_rate=0.1,
        rates=rates,
        failures=dict.fromkeys(range(3), "lost"),
        bytes_up=329_000_000,
    )
    for rate in rates.values():
        log.note_sent(rate, int(12_345_678 * rate**2))
    return log


def test_a_hundred_clients_fit_a_hundred_columns():
    line = filled({number: 0.5 ** (number % 5) for number in range(100)}).line()
    assert line == ("round 10: a 20x12.3 MB, b 20x3.09 MB, c 20x772 kB, d 20x193 kB, e 20x48.2 kB; up 329 MB, 3 failed")
    assert len(line) <= 100


def test_many_rates_are_cut():
    line = filled({number: (1 + number) / 40 for number in range(40)}).line()
    assert line.startswith("round 10: a 1x12.3 MB, 0.975 1x")
    assert "35 more levels" in line
    assert len(line) <= 130
