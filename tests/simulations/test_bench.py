"""The benchmarks: what they measure, their goals, and their command."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from heterofl_flwr.core import LEVELS
from simulations.bench import __main__ as bench, step
from simulations.bench.measure import Goal, in_turns
from tests.simulations.tiny_data import write_tiny


@pytest.mark.parametrize(("value", "code"), [(1.0, 0), (2.0, 1), (math.nan, 1)])
def test_exit_status_is_the_verdict(monkeypatch, value, code):
    goals = [Goal("memory", value, most=1), Goal("speed", 30, least=30)]
    monkeypatch.setattr(bench.BENCHMARKS["scale"], "run", lambda options: goals)
    assert bench.main(["scale"]) == code


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("step --rounds 1 --steps 2 --cohort 2", marks=pytest.mark.slow),
        pytest.param("gpu --device cpu --rounds 1 --steps 1 --width 0.03", marks=pytest.mark.slow),
        "gpu --device cpu --jobs MNIST --rounds 1 --steps 1 --width 0.03",
        pytest.param("gpu --device cuda --rounds 1 --steps 5 --tuned", marks=pytest.mark.gpu),
        "scale --nodes 40 --sizes 4 8 --model mnist --rounds 1 --actors 0",
        pytest.param("scale --nodes 40 --sizes 8 --model mnist --rounds 1 --actors 0 --step 2", marks=pytest.mark.slow),
        pytest.param("secure --model mnist --clients 5", marks=pytest.mark.slow),
        pytest.param("round --root . --clients 20 --overhead 1", marks=pytest.mark.release),
    ],
)
def test_a_benchmark_ends_with_its_verdict(monkeypatch, capsys, tmp_path, line):
    if line.startswith("round"):
        monkeypatch.chdir(tmp_path)
        write_tiny("mnist", tmp_path)
    # A thread stands for a process, which would take seconds to start.
    monkeypatch.setattr(step, "ProcessPoolExecutor", lambda number, *of_processes: ThreadPoolExecutor(number))
    monkeypatch.setattr(step, "LEVELS", dict.fromkeys(LEVELS, LEVELS["e"]))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    code = bench.main(line.split())
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAIL" if code else "PASS")


def test_calls_take_turns_and_the_first_turn_warms_up():
    seen = []
    calls = {name: lambda name=name: seen.append(name) or len(seen) for name in "ab"}
    assert in_turns(calls, 2) == {"a": [3, 5], "b": [4, 6]}
    assert seen == list("ababab")
