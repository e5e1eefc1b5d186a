"""The benchmarks: what they measure, their goals, and their command."""

import argparse
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from flwr.app import ArrayRecord

from heterofl_flwr import training
from heterofl_flwr.core import LEVELS
from heterofl_flwr.data import Split
from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.nn import CNN
from heterofl_flwr.training import TrainOptions, evaluate
from simulations.bench import __main__ as bench
from simulations.bench import noise, plain_loop, scale, step
from simulations.bench.measure import Goal, describe_machine, in_turns, peak_of, print_verdict
from simulations.bench.step import Case

EXAMPLES = [line.split("  ")[1] for line in bench.EXAMPLES.splitlines() if line.startswith("  python")]
SMALL = Case(LEVELS["e"], steps=2, together=2)


def test_machine_is_described_with_versions():
    line = describe_machine()
    assert all(f"{name} " in line for name in ("Python", "torch", "flwr", "commit"))
    assert "cores" in line


@pytest.mark.parametrize(("value", "code"), [(1.0, 0), (2.0, 1), (math.nan, 1)])
def test_exit_status_is_the_verdict(monkeypatch, capsys, value, code):
    goals = [Goal("memory", value, most=1), Goal("speed", 30, least=30)]
    monkeypatch.setattr(bench.BENCHMARKS["scale"], "run", lambda options: goals)
    assert bench.main(["scale"]) == code
    expected = f"{'FAIL' if code else 'PASS'}: memory {value:g} (goal: at most 1); speed 30 (goal: at least 30)"
    assert capsys.readouterr().out.splitlines()[-1] == expected


@pytest.mark.parametrize("name", ["rounds", "steps"])
def test_no_measurement_at_all_is_refused(capsys, name):
    assert bench.main(["step", f"--{name}", "0"]) == 2
    assert f"--{name} is 0; expected at least 1" in capsys.readouterr().err


def test_what_has_no_goals_passes(capsys):
    assert print_verdict([])
    assert capsys.readouterr().out == "\nPASS: there is nothing to compare with\n"


def test_calls_take_turns_and_the_first_turn_warms_up():
    seen = []
    calls = {name: lambda name=name: seen.append(name) or len(seen) for name in "ab"}
    assert in_turns(calls, 2) == {"a": [3, 5], "b": [4, 6]}
    assert seen == list("ababab")


def test_each_way_to_draw_noise_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    (goal,) = noise.run(argparse.Namespace(model="mnist", rounds=1))
    lines = capsys.readouterr().out.splitlines()
    assert "1,556,874 parameters" in lines[0]
    assert [line.endswith("MB/s") for line in lines[2:5]] == [True] * 3
    assert goal.value > 0


def test_all_sides_of_a_step_compute_the_same():
    step.check_equal(Case(LEVELS["c"], steps=60, together=2, seed=3))


@pytest.mark.parametrize("engine", ["plain", "cohort"])
def test_sides_that_differ_are_not_compared(monkeypatch, engine):
    right = training.ENGINES[engine]

    def train_wrongly(jobs, options):
        results = right(jobs, options)
        jobs[-1].model.linear.bias.data *= math.nan
        return results

    monkeypatch.setitem(training.ENGINES, engine, train_wrongly)
    with pytest.raises(HeteroFLError, match=rf"engine {engine} and the plain loop differ by .* in linear.bias after 5"):
        step.check_equal(SMALL)


class InThisProcess(ThreadPoolExecutor):
    """A pool whose worker is a thread, which starts at once."""

    def __init__(self, number, *of_processes):
        super().__init__(number)


def test_step_measures_each_side_and_ends_with_its_verdict(monkeypatch, capsys):
    monkeypatch.setattr(step, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(step, "LEVELS", dict.fromkeys(LEVELS, LEVELS["e"]))
    code = bench.main(["step", "--rounds", "1", "--steps", "2", "--cohort", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("FAIL" if code else "PASS")
    found = (words for words in map(str.split, lines) if words[:1] and words[0] in LEVELS)
    rows = {words[0]: [float(word) for word in words[1:]] for words in found}
    assert list(rows) == list(LEVELS)
    assert all(len(values) == 9 and min(values) > 0 for values in rows.values())


def test_peak_counts_what_a_call_allocates_and_frees_and_not_what_was_there():
    before, size = torch.ones(2**24), 64 * 2**20
    own, other = peak_of(lambda: torch.ones(size // 4).sum().item()), peak_of(lambda: float(before[0]))
    assert math.isnan(own) or 0.9 * size < own < 1.5 * size
    assert math.isnan(other) or other < 2**24


@pytest.mark.parametrize(("number", "most"), [(1, 9), (2, 10), (4, 15), (9, 15)])
def test_window_is_counted_where_it_weighs_most(number, most):
    assert scale.most_in_a_row([2, 3, 1, 9], number) == most


def test_a_mean_that_is_not_the_model_raises_an_error():
    strategy = scale.make_strategy("mnist", "e1")
    state = strategy.federation.initial_state()
    scale.check_same(ArrayRecord(state), strategy)
    state["linear.bias"] += 1e-3
    with pytest.raises(AssertionError, match="Mismatched elements"):
        scale.check_same(ArrayRecord(state), strategy)


def test_a_run_of_another_size_raises_an_error():
    strategy = scale.make_strategy("mnist", "e1")
    with scale.LocalGrid(scale.APP, 3) as grid:
        scale.available_nodes(grid, strategy.engine)
        # Said to be 3 of 6, but there are 3, of which half is 2.
        with pytest.raises(HeteroFLError, match="0 of 2 clients failed, expected 3"):
            scale.measure_run(strategy, grid, 3, 2, nodes=6, window=16)
        assert scale.measure_run(strategy, grid, 2, 4, nodes=3, window=16)[0] > 0


def test_scale_ends_with_its_verdict(capsys):
    line = ["scale", "--nodes", "40", "--sizes", "4", "8", "--model", "mnist", "--rounds", "1", "--actors", "0"]
    code = bench.main(line)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("FAIL" if code else "PASS")
    assert [line.split()[0] for line in lines if line.endswith("models")] == ["4", "8"]


PIXELS = torch.randint(256, (40, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(5, (40,), generator=torch.Generator().manual_seed(1))


def test_pixels_inputs_and_pictures_of_the_plain_loop_are_one_another():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, -1, -1, -1)
    inputs = plain_loop.to_inputs(pixels)
    torch.testing.assert_close(plain_loop.to_pixels(inputs), pixels, rtol=0, atol=0)
    pictures = plain_loop.Pictures(pixels, torch.tensor([4, 9]))
    for number, label in enumerate((4, 9)):
        torch.testing.assert_close(pictures[number]["img"], inputs[number])
        assert int(pictures[number]["label"]) == label


def test_the_plain_loop_returns_loss_and_accuracy_as_seen():
    torch.manual_seed(2)
    model = CNN(hidden=(4, 8))
    expected = evaluate(model.eval(), Split(plain_loop.to_inputs(PIXELS), LABELS), batch_size=40)
    still = TrainOptions(learning_rate=1e-12, epochs=2, batch_size=40)
    data = plain_loop.Pictures(PIXELS, LABELS)
    loss, accuracy = plain_loop.train(model, data, range(10), still)
    assert loss == pytest.approx(expected.loss, rel=1e-4)
    assert accuracy == pytest.approx(expected.accuracy)
