"""The numbers of a run, and the tables that end it."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.report import seconds_to, summary_table
from heterofl_flwr.report.summary import failure_cells, level_cells, score_cells, summary_lines
from heterofl_flwr.runs.costs import LevelCost, ModelCosts, full_bytes, savings

COSTS = ModelCosts(
    1.0,
    (
        LevelCost("a", 1.0, parameters=100, macs=1000, bytes=400),
        LevelCost("b", 0.5, parameters=30, macs=300, bytes=120),
        LevelCost("d", 0.125, parameters=10, macs=100, bytes=40),
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


def test_neither_unavailable_devices_nor_late_spare_clients_count_in_fedavg():
    away = make(1, [1.0] * 3, bytes_down=800, bytes_up=400, bytes_by_level={"a": 800})
    away.failures, away.unsent = {0: "not available", 1: "lost"}, (0,)
    late = make(1, [1.0] * 3, bytes_down=1200, bytes_up=800, answered=2, expected=3)
    assert [full_bytes(record, COSTS) for record in (away, late)] == [800 + 400, 1200 + 800]
    assert level_cells([away], COSTS)[1][0][-1] == "400 B"
    alone = make(1, [1.0, 0.5], [1], bytes_by_level={"a": 400, "b": 0})
    alone.unsent = (1,)
    assert [row[-1] for row in level_cells([alone], COSTS)[1]] == ["400 B", "-", "-"]
    assert savings([alone], COSTS).macs_share == 1


@pytest.mark.parametrize(
    ("widths", "macs"), [("none", 300 + 100), ("all", 300 + 100 + 100), ("ordered", (300 + 100) / 2 + 100)]
)
def test_multiplications_are_also_those_of_inner_widths(widths, macs):
    """A client of b computes the model of d inside its own too: never, in each step, or instead in every other step."""
    saved = savings([make(1, [0.5, 0.125])], COSTS, {"mix": "b1-d1", "train": {"distill": widths}})
    assert saved.macs_share == macs / (2 * 1000)


def test_a_level_has_its_share_of_clients_and_the_mean_of_the_bytes_that_they_received():
    sent = [{"a": 400, "b": 120, "d": 30}, {"d": 60}]
    records = [replace(record, bytes_by_level=sizes) for record, sizes in zip(RECORDS, sent, strict=True)]
    assert [(row[0], row[4], row[-1]) for row in level_cells(records, COSTS)[1]] == [
        ("a", "20.0 %", "400 B"),
        ("b", "20.0 %", "120 B"),
        ("d", "60.0 %", "30 B"),
    ]
    assert level_cells(RECORDS, COSTS)[1][0][-1] == "-"  # of an older version, which did not record them


def test_metrics_of_a_users_own_are_columns_of_the_levels():
    first = make(1, [1.0, 0.5], evaluate_by_level={"a": {"f1": 0.1, "global-accuracy": 0.2}})
    last = make(2, [1.0, 0.5], evaluate_by_level={"a": {"f1": 0.25, "local-loss": 3.0}, "b": {"local-loss": 4.0}})
    heads, rows = level_cells([first, last, make(3, [1.0])], None)
    assert heads[-2] == "f1"
    assert [row[-2] for row in rows] == ["0.25", "-"]
    named = make(1, [1.0], evaluate_by_level={"a": {"top-accuracy": 0.5, "local-accuracy": 0.25, "my-loss": 2.0}})
    assert [cells[5:-1] for cells in (level_cells([named], None)[0], *level_cells([named], None)[1])] == [
        ("accuracy", "top-accuracy", "my-loss"),
        ["25.0 %", "50.0 %", "2"],
    ]


def test_a_regression_has_no_column_of_an_accuracy_that_nobody_measured():
    heads, (row,) = level_cells([make(1, [1.0], evaluate_by_level={"a": {"mse": 0.5}})], None)
    assert heads[4:] == ("clients", "mse", "bytes down")
    assert row[4:] == ["100.0 %", "0.5", "-"]
    assert "accuracy" in level_cells([make(1, [1.0])], None)[0]  # nothing was evaluated yet


def test_a_levels_value_of_an_earlier_round_names_its_round():
    first = make(1, [1.0, 0.5], evaluate_by_level={"a": {"local-loss": 3.0}, "b": {"local-loss": 4.0}})
    last = make(2, [1.0], evaluate_by_level={"a": {"local-loss": 2.0, "f1": 0.5}}, evaluate_asked=3, evaluate_answers=1)
    cells = [row[5:7] for row in level_cells([first, last, make(3, [1.0])], None)[1]]
    assert cells == [["2 *", "0.5 *"], ["4 (round 1)", "-"]]


def test_one_percent_beside_larger_accuracies_in_percent_is_not_all():
    levels = {"a": {"accuracy": 60.0, "top-accuracy": 80.0}, "b": {"accuracy": 1.0, "top-accuracy": 0.5}}
    records = [make(1, [1.0, 0.5], evaluate={"accuracy": 60.0}, evaluate_by_level=levels)]
    records.append(make(2, [1.0, 0.5], evaluate={"accuracy": 1.0}))
    assert [row[5:7] for row in level_cells(records, None)[1]] == [["60", "80"], ["1", "0.5"]]
    assert score_cells(records)[1][0][2:4] == ("1", "60")


def test_a_row_of_the_closing_table_has_one_statistic():
    record = make(1, [1.0], evaluate={"local-loss": 9.0}, evaluate_medians={"local-loss": 1.0})
    assert score_cells([record])[1] == [("local-loss", "mean", "9", "-", "-"), ("local-loss", "median", "1", "1", "1")]


def test_a_final_value_of_an_earlier_round_names_its_round():
    records = [
        make(1, [1.0], evaluate={"f1": 0.5, "loss": 2.0}),
        make(2, [1.0], evaluate={"loss": 1.0}),
        make(3, [1.0]),
    ]
    assert [row[2] for row in score_cells(records)[1]] == ["0.5 (round 1)", "1"]


def test_failures_are_grouped_by_reason():
    records = [make(1, [1.0] * 3, [1, 2]), make(3, [1.0] * 3, [2])]
    late = RoundRecord(server_round=4, seconds=1, learning_rate=0, rates={7: 1.0}, failures={7: "out of memory"})
    records += [late, make(5, [1.0], evaluate_failures={0: f"first {'x' * 200} last"})]
    often, once, evaluation = failure_cells(records)[1]
    assert (often, once) == (("lost", "3", "1, 3", "1-2"), ("out of memory", "1", "4", "7"))
    assert re.fullmatch("first .{50,95} last", evaluation[0])


def test_failures_of_registered_nodes_have_their_names():
    record = make(1, [1.0] * 3, [0, 1, 2])
    record.names = {0: "phone", 2: "camera"}
    later = make(2, [1.0] * 3, [2], names={0: "tablet", 2: "camera"})  # the phone has left, and its partition is taken
    assert failure_cells([record, later])[1] == [("lost", "4", "1-2", "phone, camera, 1")]


def test_names_and_reasons_of_clients_are_printed_as_they_are(record):
    name, reason = "[link=https://example.org]here [/x]", "error 2: [red]no[/] [/link]"
    Console(file=(stream := io.StringIO()), width=100).print(
        summary_table([replace(record(1), evaluate={name: 0.5}, failures={0: reason})])
    )
    assert name in stream.getvalue()
    assert reason in stream.getvalue()


@pytest.mark.parametrize(("name", "choose", "easy"), [("global-accuracy", max, 0.0), ("global-loss", min, 9.0)])
def test_time_to_a_value_is_that_of_the_first_round_that_has_it(simulated, name, choose, easy):
    found = {record.server_round: record.evaluate[name] for record in simulated if record.evaluate}
    assert seconds_to(simulated, name, choose(found.values())) == 90 * choose(found, key=found.get)
    assert seconds_to(simulated, name, easy) == 90 * min(found)
    assert seconds_to(simulated, name, 1.1 if choose is max else -0.1) is None
    with pytest.raises(ConfigError, match="no run has a metric accuracy; expected one of coverage, global-accuracy"):
        seconds_to(simulated, "accuracy", 0.5)


def test_the_lines_say_what_a_run_took_and_saved(simulated):
    line = "on the simulated devices: 1 h 0 min of training, best global-accuracy after 57 min 0 s; energy"
    assert line in "".join(summary_lines(simulated, None))
    assert next(summary_lines(RECORDS, COSTS)) == "2.0 s, 2.5 clients and 1.0 s a round; 1 of 5 trainings failed"
    few = replace(RECORDS[1], evaluate_asked=20, evaluate_answers=1)
    assert "never the best" in next(summary_lines([few], None))
    metrics = {"epsilon": 1.5, "delta": 1e-5, "training-releases": 2.0, "summed-clients": 4.0, "drift": 0.25}
    stages, privacy = list(summary_lines([replace(RECORDS[1], stages=metrics)], None))[-2:]
    assert stages == "stages after the last round: summed-clients 4, drift 0.25"
    assert privacy == "each client's privacy after round 2: epsilon 1.5 at delta 1e-05"
    own = [replace(RECORDS[1], stages={"epsilon": 0.5})]  # of a user's stage, without the accountant's delta
    assert list(summary_lines(own, None))[-1] == "stages after the last round: epsilon 0.5"
    assert list(summary_lines([], None)) == []
