import math

import pytest
import torch
from flwr.app import ArrayRecord

from simulations.bench import __main__ as bench
from simulations.bench import scale
from simulations.bench.measure import peak_of


def test_peak_counts_what_a_call_takes_and_gives_back():
    size = 64 * 2**20
    peak = peak_of(lambda: torch.ones(size // 4).sum().item())
    assert math.isnan(peak) or 0.9 * size < peak < 1.5 * size


def test_peak_does_not_count_what_was_there():
    before = torch.ones(2**24)
    peak = peak_of(lambda: float(before[0]))
    assert math.isnan(peak) or peak < 2**24


@pytest.mark.parametrize(("number", "most"), [(1, 9), (2, 10), (3, 13), (4, 15), (9, 15)])
def test_window_is_counted_where_it_weighs_most(number, most):
    assert scale.most_in_a_row([2, 3, 1, 9], number) == most


@pytest.mark.parametrize(
    ("own", "growth", "passed"),
    [([1.0, 3.0], 1.25, True), ([3.1, 1.0], 1.0, False), ([1.0], 1.26, False), ([math.nan], 1.0, False)],
)
def test_verdict_compares_with_the_goals(capsys, own, growth, passed):
    assert scale.verdict(own, growth) is passed
    assert capsys.readouterr().out.startswith("\nPASS" if passed else "\nFAIL")


def test_a_mean_that_is_not_the_model_is_refused():
    strategy = scale.HeteroFL(scale.PAPER["mnist"].build(), "e1")
    state = strategy.federation.initial_state()
    scale.check_same(ArrayRecord(state), strategy)
    state["linear.bias"] += 1e-3
    with pytest.raises(AssertionError, match="Mismatched elements"):
        scale.check_same(ArrayRecord(state), strategy)


def test_a_run_of_another_size_is_refused():
    records = scale.Records()
    strategy = scale.HeteroFL(
        scale.PAPER["mnist"].build(), "e1", evaluation=scale.Evaluation(every=0), callbacks=[records]
    )
    with scale.LocalGrid("simulations.bench.scale:app", 3) as grid:
        scale.available_nodes(grid, strategy.engine)
        # Said to be 3 of 6, but there are 3, of which half is 2.
        with pytest.raises(RuntimeError, match="0 of 2 clients failed, expected 3"):
            scale.measure_run(strategy, grid, records, 3, 6, 2, window=16)
        assert scale.measure_run(strategy, grid, records, 2, 3, 4, window=16).milliseconds > 0


@pytest.mark.slow
def test_command_ends_with_its_verdict(capsys):
    line = ["scale", "--nodes", "40", "--sizes", "4", "8", "--model", "mnist", "--rounds", "1"]
    code = bench.main(line)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("FAIL" if code else "PASS")
    assert [line.split()[0] for line in lines if line.endswith("models")] == ["4", "8"]
