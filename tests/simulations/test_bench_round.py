"""The sides of the benchmark of rounds, on a data set of 400 images laid out like MNIST."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from heterofl_flwr.core import LEVELS
from heterofl_flwr.errors import HeteroFLError
from simulations.bench import __main__ as bench
from simulations.bench import round as benchmark
from simulations.bench.ours import build_our_request
from simulations.reference.authors import Authors
from simulations.reference.rounds import Experiment, Parts, balanced_seed, median, members
from tests.simulations.tiny_data import write_tiny

CLIENTS = 20


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    root = tmp_path_factory.mktemp("hub")
    write_tiny("mnist", root)
    return Experiment(str(root), CLIENTS)


@pytest.fixture(scope="module")
def command(experiment) -> list[str]:
    return ["round", "--root", experiment.root, "--clients", str(CLIENTS)]


def test_ten_clients_train_two_of_each_level():
    rates = members(100, balanced_seed(100))
    assert Counter(rates.values()) == dict.fromkeys(LEVELS.values(), 2)
    assert len(rates) == 10
    assert all(rate == [*LEVELS.values()][partition // 20] for partition, rate in rates.items())


def test_median_is_taken_of_each_part():
    rounds = [Parts(1, 5, 3, 0.5, 0.5), Parts(2, 4, 9, 0.6, 0.7), Parts(9, 1, 5, 0.7, 0.6)]
    assert median(rounds) == Parts(2, 4, 5, 0.6, 0.6)
    assert median(rounds).whole == 11
    assert median(rounds).evaluation == 9


def test_our_request_is_that_of_the_command(experiment, tmp_path):
    run, changes = tmp_path / "run", {"assignment": "fix"}
    asked = build_our_request(replace(experiment, mix="d1-e1"), run, "--grid", "local", settings=changes)
    expected = {"sample.fraction": 0.5, "assignment": "fix", "evaluate.every": 10, "train.epochs": 5, "mix": "d1-e1"}
    assert {key: asked.config[key] for key in expected} == expected
    assert asked.clients == CLIENTS


def test_runs_are_computed_from_the_parts(capsys):
    ours, theirs = Parts(10.0, 6.0, 4.0), Parts(20.0, 6.0, 4.0)
    goals = benchmark.compare_runs(ours, (2.5, 12.5), (200, 10), theirs)
    # Ours: 200 * 10 + 19 * 2.5 + 12.5 = 2,060 s; theirs: 200 * 30 = 6,000 s, or 200 * 20 + 20 * 10 = 4,200 s.
    found = [(round(goal.value, 2), goal.met) for goal in goals]
    assert found == [(2.0, True), (1.5, False), (2.91, False), (2.04, True)]
    assert str(goals[2]) == "200 rounds, in times the authors' speed 2.91 (goal: at least 4.8)"
    assert "34.3 min" in capsys.readouterr().out
    assert benchmark.compare_runs(ours, (2.5, 12.5), (200, 10)) == []


@pytest.mark.slow
def test_command_measures_our_round_and_ends_with_its_verdict(command, capsys):
    code = bench.main([*command, "--overhead", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"{'FAIL' if code else 'PASS'}: overhead as a share of a round 0.")
    assert any(line.startswith("LocalGrid") for line in lines)
    assert any(line.startswith("200 rounds, computed from these parts") for line in lines)
    assert any(line.startswith("ours, evaluating every 10 rounds") for line in lines)
    parts = {words[0]: float(words[-1]) for words in map(str.split, lines) if words[:1] and words[0] in Parts.__slots__}
    assert min(parts[part] for part in ("train", "moments", "test", "accuracy")) > 0


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if ".git" not in path.parts}


@pytest.mark.slow
@pytest.mark.parity
def test_authors_round_is_what_it_says(checkout, experiment):
    before = files(checkout)
    with Authors(checkout, experiment.data, experiment.control(), 1) as side:
        parts = side.play()
    assert 0 < parts.accuracy < 1
    assert min(parts.train, parts.moments, parts.test) > 0
    assert files(checkout) == before


@pytest.mark.slow
@pytest.mark.parity
def test_authors_go_on_as_if_there_was_no_break_and_with_no_other_experiment(checkout, experiment, tmp_path):
    state = tmp_path / "state.pt"
    what = (checkout, experiment.data, experiment.control("dynamic"), 1)
    with Authors(*what, balanced=False) as side:
        whole = [side.play(evaluate=True) for _ in range(2)]
    for _ in range(2):
        with Authors(*what, balanced=False, state=state) as side:
            side.play(evaluate=True)
    again = [(parts.accuracy, parts.local_accuracy) for parts in side.history]
    assert again == [(parts.accuracy, parts.local_accuracy) for parts in whole]
    with (
        pytest.raises(HeteroFLError, match=r"holds .*_iid_dynamic_.*, another experiment"),
        Authors(checkout, experiment.data, experiment.control(), 1, balanced=False, state=state),
    ):
        pass
