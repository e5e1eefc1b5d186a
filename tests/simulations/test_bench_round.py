"""The sides of the benchmark of rounds, on a data set of 400 images laid out like MNIST."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from heterofl_flwr.core import LEVELS
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.nn import PAPER, collect_moments, with_static_norm
from heterofl_flwr.training import evaluate
from simulations.bench import __main__ as bench
from simulations.bench import round as benchmark
from simulations.bench import target
from simulations.bench.measure import print_verdict
from simulations.bench.ours import build_our_request
from simulations.bench.target import Course
from simulations.reference.authors import Authors
from simulations.reference.rounds import Experiment, Model, Parts, balanced_seed, check, is_balanced, median, members
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


@pytest.fixture(scope="module")
def measured(experiment) -> tuple[float, Model]:
    """Return the accuracy of an initial model with the static norm of all training images, and the model."""
    data = experiment.data()
    torch.manual_seed(0)
    module = PAPER["mnist"].build()(1.0)
    module = with_static_norm(module, collect_moments(module, data.train.inputs.split(10), kind="paper"))
    return evaluate(module, data.test).accuracy, Model.of(module)


def test_ten_clients_train_two_of_each_level():
    rates = members(100, balanced_seed(100))
    assert Counter(rates.values()) == dict.fromkeys(LEVELS.values(), 2)
    assert len(rates) == 10
    assert all(rate == [*LEVELS.values()][partition // 20] for partition, rate in rates.items())


@pytest.mark.parametrize(
    ("rates", "expected"),
    [([*LEVELS.values()], True), ([*LEVELS.values(), 1.0], False), ([1.0, 0.5], False), ([], False)],
)
def test_balance_needs_each_level_equally_often(rates, expected):
    assert is_balanced(rates) is expected


def test_median_is_taken_of_each_part():
    rounds = [Parts(1, 5, 3, 0.5, 0.5), Parts(2, 4, 9, 0.6, 0.7), Parts(9, 1, 5, 0.7, 0.6)]
    assert median(rounds) == Parts(2, 4, 5, 0.6, 0.6)
    assert median(rounds).whole == 11
    assert median(rounds).evaluation == 9


def test_a_wrong_accuracy_is_found(experiment, measured):
    accuracy, model = measured
    check("ours", model, accuracy, experiment.data())
    for wrong in (accuracy + 0.05, float("nan")):
        with pytest.raises(RuntimeError, match="ours reports an accuracy"):
            check("ours", model, wrong, experiment.data())


def test_moments_of_a_part_of_the_data_are_found(experiment, measured):
    accuracy, model = measured
    off = replace(model, means=[model.means[0] * 1.01, *model.means[1:]])
    with pytest.raises(RuntimeError, match=r"(off the mean over all training images|reports an accuracy)"):
        check("ours", off, accuracy, experiment.data())


def test_model_keeps_the_order_of_layers(measured):
    _, model = measured
    again = Model.of(model.build())
    for kind in ("parameters", "means", "variances"):
        for one, two in zip(getattr(model, kind), getattr(again, kind), strict=True):
            np.testing.assert_array_equal(one, two)


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
    code = bench.main([*command, "--overhead", "1"])  # it checks the model that the round ended with
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"{'FAIL' if code else 'PASS'}: overhead as a share of a round 0.")
    assert any(line.startswith("LocalGrid") for line in lines)
    assert any(line.startswith("200 rounds, computed from these parts") for line in lines)
    assert any(line.startswith("ours, evaluating every 10 rounds") for line in lines)
    parts = {words[0]: float(words[-1]) for words in map(str.split, lines) if words[:1] and words[0] in Parts.__slots__}
    assert min(parts[part] for part in ("train", "moments", "test", "accuracy")) > 0


@pytest.mark.parametrize(
    ("ours", "theirs", "passed"),
    [
        (Course([2, 2], {2: 0.9}), None, True),
        (Course([2, 2], {2: 0.8}), None, False),
        (Course([2, 2], {2: 0.9}), Course([3, 3], {1: 0.2, 2: 0.95}), True),
        (Course([2, 2], {2: 0.9}), Course([3, 3], {1: 0.95}), False),
        (Course([2, 2], {2: 0.9}), Course([3, 3], {2: 0.1}), True),
        (Course([2, 2], {}), Course([3, 3], {2: 0.95}), False),
    ],
)
def test_target_is_reached_and_not_later(capsys, ours, theirs, passed):
    assert print_verdict(target.compare(ours, theirs, 0.9)) is passed
    assert capsys.readouterr().out.startswith("\nPASS" if passed else "\nFAIL")


def test_a_course_says_when_it_reached_a_goal():
    course = Course([10.0, 20.0, 30.0, 40.0], {2: 0.5, 4: 0.9})
    assert course.describe(0.5) == "round 2, 30 s, accuracy 0.5000"
    assert course.describe(0.95) == "not in 4 rounds; best 0.9000"


@pytest.mark.slow
def test_target_goes_on_after_a_break(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "Experiment", partial(Experiment, mix="e1"))
    line = [*command, "--every", "1", "--work", str(tmp_path)]
    assert bench.main([*line, "--target", "1.1", "--most", "1"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ours: not in 1 rounds; best 0.") for line in printed)
    assert printed[-1].startswith("FAIL: our best accuracy 0.")
    first = target.read_course(tmp_path / "ours")
    assert bench.main([*line, "--target", "1.1", "--most", "2"]) == 1
    again = target.read_course(tmp_path / "ours")
    assert again.seconds[:1] == first.seconds
    assert list(again.accuracies) == [1, 2]
    # What is done is not done again.
    assert bench.main([*line, "--target", str(again.accuracies[1]), "--most", "9"]) == 0
    assert target.read_course(tmp_path / "ours") == again


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if ".git" not in path.parts}


@pytest.mark.slow
@pytest.mark.parity
def test_authors_round_is_what_it_says(checkout, experiment):
    before = files(checkout)
    with Authors(checkout, experiment.data, experiment.control(), 1) as side:
        parts, model = side.round()
    check(side.name, model, parts.accuracy, experiment.data())
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


def test_a_folder_without_their_code_ends_the_command(experiment, command, tmp_path, capsys):
    with pytest.raises(ConfigError, match="expected a checkout of the authors' repository"):
        Authors(tmp_path, experiment.data, experiment.control(), 1)
    line = [*command, "--target", "0.1", "--most", "0", "--authors", str(tmp_path), "--work", str(tmp_path / "work")]
    assert bench.main(line) == 2
    assert capsys.readouterr().err.startswith("simulations.bench: ")
