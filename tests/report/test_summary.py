import pytest

from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report.summary import failure_rows, full_bytes, level_rows, macs_shares, savings, shells
from heterofl_flwr.runs.costs import LevelCost, ModelCosts

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


def test_levels_have_their_share_of_clients_and_last_score():
    rows = level_rows(RECORDS, COSTS)
    assert [(row.level, row.share, row.score) for row in rows] == [("a", 0.2, None), ("b", 0.2, 0.3), ("d", 0.6, None)]
    assert rows[1].cost == COSTS.levels[1]


def test_levels_without_costs_are_known_by_their_rates():
    rows = level_rows([make(1, [1.0, 0.3])], None)
    assert [(row.level, row.rate, row.cost) for row in rows] == [("a", 1.0, None), ("0.3", 0.3, None)]


def test_a_run_without_rounds_has_levels_without_clients():
    assert [row.share for row in level_rows([], COSTS)] == [0, 0, 0]
    assert savings([], COSTS) is None
    assert shells([], COSTS) == []


def test_savings_are_against_the_full_model_on_the_same_clients():
    assert [full_bytes(record, COSTS) for record in RECORDS] == [400 * (3 + 2), 400 * (2 + 2)]
    saved = savings(RECORDS, COSTS)
    assert saved.bytes_sent == 880
    assert saved.bytes_full == 3600
    assert saved.bytes_share == pytest.approx(880 / 3600)
    assert saved.macs_share == pytest.approx((1000 + 300 + 3 * 100) / 5000)


def test_full_size_fedavg_saves_nothing():
    saved = savings([make(1, [1.0, 1.0], bytes_down=800, bytes_up=800)], COSTS)
    assert (saved.bytes_share, saved.macs_share) == (1, 1)


def test_savings_are_unknown_where_a_cost_is():
    assert savings(RECORDS, None) is None
    assert savings([make(1, [0.3])], COSTS) is None


def test_multiplications_of_a_round_are_a_mean_over_clients():
    assert macs_shares(RECORDS, COSTS) == ([1, 2], [pytest.approx(1.4 / 3), pytest.approx(0.1)])


def test_shells_say_who_trained_which_share():
    outer, middle, inner = shells(RECORDS, COSTS)
    assert (outer.levels, middle.levels, inner.levels) == (("a",), ("a", "b"), ("a", "b", "d"))
    assert (outer.share, middle.share, inner.share) == (0.7, 0.2, 0.1)
    assert (outer.held, outer.idle) == (0, 1)  # its only holder failed
    assert (middle.held, middle.idle) == (pytest.approx(1 / 6), 0.5)
    assert (inner.held, inner.idle) == (pytest.approx((2 / 3 + 1) / 2), 0)


def test_failures_are_grouped_by_reason():
    records = [make(1, [1.0] * 3, [1, 2]), make(3, [1.0] * 3, [2])]
    late = RoundRecord(server_round=4, seconds=1, learning_rate=0, rates={7: 1.0}, failures={7: "out of memory"})
    often, once = failure_rows([*records, late])
    assert (often.reason, often.times, often.rounds, often.clients) == ("lost", 3, (1, 3), (1, 2))
    assert (once.reason, once.times, once.rounds, once.clients) == ("out of memory", 1, (4,), (7,))


def test_evaluations_that_failed_are_among_them():
    record = make(2, [1.0] * 3, evaluate_failures={1: "no usable moments"})
    (row,) = failure_rows([record])
    assert (row.reason, row.times, row.clients) == ("no usable moments", 1, (1,))
