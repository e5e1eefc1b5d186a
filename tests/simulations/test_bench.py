"""The benchmarks: what they measure, their goals, and their command."""

import argparse
import math
import shlex

import pytest
import torch
from flwr.app import ArrayRecord

from heterofl_flwr import training
from heterofl_flwr.core import LEVELS
from simulations.bench import __main__ as bench
from simulations.bench import edge, noise, scale, step
from simulations.bench.edge import Used
from simulations.bench.measure import describe_machine, peak_of
from simulations.bench.step import Case

EXAMPLES = [line.split("  ")[1] for line in bench.EXAMPLES.splitlines() if line.startswith("  python")]
SMALL = Case("cnn", LEVELS["e"], steps=2, together=2, seed=0)


def test_help_says_a_line_of_each(capsys):
    with pytest.raises(SystemExit, match="0"):
        bench.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, module in bench.BENCHMARKS.items():
        assert any(line.split()[:1] == [name] for line in lines)
        assert sum(line.endswith(f"  {module.__doc__.splitlines()[0]}") for line in lines) == 1


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_are_commands(line):
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "simulations.bench"]
    assert bench.parser().parse_args(words[3:]).benchmark in bench.BENCHMARKS


def test_machine_is_described_with_versions():
    line = describe_machine()
    assert "cores" in line
    assert all(f"{name} " in line for name in ("Python", "torch", "flwr", "commit"))


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_exit_status_is_the_verdict(monkeypatch, capsys, passed, code):
    monkeypatch.setattr(bench.BENCHMARKS["scale"], "run", lambda options: passed)
    assert bench.main(["scale"]) == code
    assert "torch" in capsys.readouterr().out


def edge_report(client):
    return edge.report({"torch": Used(1.0, 2.0, 100), "client": client, "training": Used(9.0, 9.0, 900)})


@pytest.mark.parametrize(
    ("verdict", "measured", "passed"),
    [
        (noise.verdict, (99.0,), False),
        (noise.verdict, (100.0,), True),
        (edge_report, (Used(9.0, 3.0, 125),), True),
        (edge_report, (Used(1.0, 3.1, 100),), False),
        (edge_report, (Used(1.0, 2.0, 126),), False),
        (step.verdict, ({"a": 1.3, "b": 0.1, "e": 2.0},), True),
        (step.verdict, ({"a": 1.29, "e": 5.0},), False),
        (step.verdict, ({"a": 2.0, "e": 1.99},), False),
        (step.verdict, ({"a": 2.0, "e": math.nan},), False),
        (scale.verdict, ([1.0, 3.0], 1.25), True),
        (scale.verdict, ([3.1, 1.0], 1.0), False),
        (scale.verdict, ([1.0], 1.26), False),
        (scale.verdict, ([math.nan], 1.0), False),
    ],
)
def test_verdicts_compare_with_the_goals(capsys, verdict, measured, passed):
    assert verdict(*measured) is passed
    assert capsys.readouterr().out.splitlines()[-1].startswith("PASS" if passed else "FAIL")


def test_each_way_to_draw_noise_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    noise.run(argparse.Namespace(model="mnist", rounds=1))
    lines = capsys.readouterr().out.splitlines()
    assert "1,556,874 parameters" in lines[0]
    assert [line.endswith("MB/s") for line in lines[2:5]] == [True] * 3


def test_processes_are_measured_by_themselves():
    held = bytearray(200 * 2**20)  # what this process holds is none of the child's
    small, large = edge.measure("pass"), edge.measure(f"x = bytearray({100 * 2**20})")
    assert len(held) > small.peak
    assert 90 * 2**20 < large.peak - small.peak < 110 * 2**20
    assert 0 < small.processor < small.seconds + 1


def test_a_process_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match="exit status 3: raise SystemExit"):
        edge.measure("raise SystemExit(3)")


def test_the_median_is_taken_of_each_number():
    assert edge.median([Used(1.0, 9.0, 5), Used(2.0, 7.0, 6), Used(3.0, 8.0, 1)]) == Used(2.0, 8.0, 5)


@pytest.mark.parametrize(("model", "level"), [("cnn", "e"), ("cnn", "c"), ("preresnet18", "e")])
def test_all_sides_of_a_step_compute_the_same(model, level):
    step.check_equal(Case(model, LEVELS[level], steps=60, together=2, seed=3))


@pytest.mark.parametrize("engine", ["plain", "cohort"])
@pytest.mark.parametrize("spoil", [lambda value: value + 1e-3, lambda value: value * math.nan])
def test_sides_that_differ_are_not_compared(monkeypatch, engine, spoil):
    right = training.ENGINES[engine]

    def train_wrongly(jobs, options):
        results = right(jobs, options)
        with torch.no_grad():
            bias = jobs[-1].model.linear.bias
            bias.copy_(spoil(bias))
        return results

    monkeypatch.setitem(training.ENGINES, engine, train_wrongly)
    with pytest.raises(RuntimeError, match=rf"engine {engine} and the plain loop differ by .* in linear.bias after 5"):
        step.check_equal(Case("cnn", LEVELS["e"], steps=60, together=2, seed=0))


@pytest.mark.parametrize("name", ["time_plain_loop", "time_engine", "time_cohort"])
def test_each_side_of_a_step_is_measured(name):
    assert getattr(step, name)(SMALL) > 0


@pytest.mark.slow
def test_step_ends_with_its_verdict(capsys):
    code = bench.main(["step", "--rounds", "1", "--steps", "2", "--cohort", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("FAIL" if code else "PASS")
    assert [own[0] for own in lines if own[:1] in LEVELS and own[1:2] == " "] == list(LEVELS)


def test_peak_counts_what_a_call_allocates_and_frees():
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
    with scale.LocalGrid(scale.APP, 3) as grid:
        scale.available_nodes(grid, strategy.engine)
        # Said to be 3 of 6, but there are 3, of which half is 2.
        with pytest.raises(RuntimeError, match="0 of 2 clients failed, expected 3"):
            scale.measure_run(strategy, grid, records, 3, 6, 2, window=16)
        assert scale.measure_run(strategy, grid, records, 2, 3, 4, window=16).milliseconds > 0


@pytest.mark.slow
def test_scale_ends_with_its_verdict(capsys):
    line = ["scale", "--nodes", "40", "--sizes", "4", "8", "--model", "mnist", "--rounds", "1"]
    code = bench.main(line)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("FAIL" if code else "PASS")
    assert [line.split()[0] for line in lines if line.endswith("models")] == ["4", "8"]
