"""The numbers of a run, and the tables that end it."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import seconds_to, summary_table
from heterofl_flwr.report.summary import OnDevices, failure_rows, level_cells, on_devices, shells
from heterofl_flwr.runs import LevelCost, ModelCosts
from heterofl_flwr.runs.costs import full_bytes, savings

COSTS = ModelCosts(
    1.0,
    (
        LevelCost("a", 1.0, parameters=100, macs=1000, printed_flops=2000, bytes=400),
        LevelCost("b", 0.5, parameters=30, macs=300, printed_flops=600, bytes=120),
        LevelCost("d", 0.125, parameters=10, macs=100, printed_flops=200, bytes=40),
    ),
)


def make(number, rates, failures=(), **more) -> RoundRecord:
    reasons = dict.fromkeys(failures, "lost")
    rates = dict(enumerate(rates))
    return RoundRecord(server_round=number, seconds=1, learning_rate=0.1, rates=rates, failures=reasons, **more)


# Round 1: one client each of a, b, d; that of a fails. Round 2: two of d.
RECORDS = [
    make(1, [1.0, 0.5, 0.125], failures=[0], bytes_down=560, bytes_up=160, evaluate={"global-accuracy": 0.4}),
    make(2, [0.125, 0.125], bytes_down=80, bytes_up=80, evaluate_by_level={"b": {"global-accuracy": 0.3}}),
]


def test_savings_are_against_the_full_model_on_the_same_clients():
    assert [full_bytes(record, COSTS) for record in RECORDS] == [400 * (3 + 2), 400 * (2 + 2)]
    assert savings(RECORDS, COSTS) == (880, 3600, pytest.approx(880 / 3600), pytest.approx(1600 / 5000))
    assert savings([make(1, [1.0, 1.0], bytes_down=800, bytes_up=800)], COSTS)[2:] == (1, 1)
    assert savings(RECORDS, None) is savings([make(1, [0.3])], COSTS) is savings([], COSTS) is None


def test_shells_say_who_trained_which_share():
    outer, middle, inner = shells(RECORDS, COSTS)
    assert outer == ("a only", 0.7, 0)  # its only holder failed
    assert middle == ("a to b", 0.2, pytest.approx(1 / 6))
    assert inner == ("a to d", 0.1, pytest.approx((2 / 3 + 1) / 2))
    assert shells([], COSTS) == []
    assert [row[4] for row in level_cells([], COSTS)[1]] == ["0.0 %"] * 3


def test_failures_are_grouped_by_reason():
    records = [make(1, [1.0] * 3, [1, 2]), make(3, [1.0] * 3, [2])]
    late = RoundRecord(server_round=4, seconds=1, learning_rate=0, rates={7: 1.0}, failures={7: "out of memory"})
    often, once, evaluation = failure_rows([*records, late, make(5, [1.0], evaluate_failures={0: "no usable moments"})])
    assert (often.reason, often.times, often.rounds, often.clients) == ("lost", 3, (1, 3), (1, 2))
    assert (once.reason, once.times, once.rounds, once.clients) == ("out of memory", 1, (4,), (7,))
    assert evaluation == ("no usable moments", 1, (5,), (0,))


def printed(*args, width: int = 100) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(summary_table(*args))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_names_and_reasons_of_clients_are_printed_as_they_are(record):
    name, reason = "[link=https://example.org]here [/x]", "error 2: [red]no[/] [/link]"
    lines = printed([replace(record(1), evaluate={name: 0.5}, failures={0: reason})])
    assert any(name in line for line in lines)
    assert any(line.endswith(reason) for line in lines)


def best_of(records, name, choose=max):
    found = {record.server_round: record.evaluate[name] for record in records if record.evaluate}
    return choose(found, key=found.get), choose(found.values())


def test_time_to_a_value_is_that_of_the_first_round_that_has_it(simulated):
    number, best = best_of(simulated, "global-accuracy")
    assert seconds_to(simulated, "global-accuracy", best) == 90 * number
    first = next(record for record in simulated if record.evaluate)
    assert seconds_to(simulated, "global-accuracy", 0.0) == 90 * first.server_round
    assert seconds_to(simulated, "global-accuracy", 1.1) is None
    assert seconds_to(simulated, "unknown", 0.0) is None
    number, best = best_of(simulated, "global-loss", min)
    assert seconds_to(simulated, "global-loss", best) == 90 * number


def test_time_and_energy_of_a_run_are_the_sums_over_its_rounds(records, simulated):
    assert on_devices(records) is None
    assert on_devices([]) is None
    number, _ = best_of(simulated, "global-accuracy")
    assert on_devices(simulated) == OnDevices(40 * 90.0, 40 * 1500.0, "global-accuracy", 90.0 * number)
    assert on_devices([replace(record, evaluate={}) for record in simulated]) == OnDevices(3600.0, 60e3, "", 0.0)
