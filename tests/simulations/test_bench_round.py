"""The sides of the benchmark of rounds, on a data set of 400 images laid out like MNIST."""

from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heterofl_flwr.core import LEVELS
from heterofl_flwr.errors import ConfigError, HeteroFLError
from simulations.bench import __main__ as bench
from simulations.bench import overhead, target
from simulations.bench import round as benchmark
from simulations.bench.sides import Ours, Plain, request
from simulations.bench.target import Way
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
def played(experiment) -> tuple[Parts, Model]:
    """Return a round of the plain side."""
    return Plain(experiment, 1).round()


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


def test_plain_round_is_what_it_says(experiment, played):
    parts, model = played
    assert min(parts.train, parts.moments, parts.test) > 0
    check("plain", model, parts.accuracy, experiment.data())


def test_a_wrong_accuracy_is_found(experiment, played):
    parts, model = played
    with pytest.raises(RuntimeError, match="plain reports an accuracy"):
        check("plain", model, parts.accuracy + 0.05, experiment.data())
    with pytest.raises(RuntimeError, match="plain reports an accuracy"):
        check("plain", model, float("nan"), experiment.data())


def test_moments_of_a_part_of_the_data_are_found(experiment, played):
    parts, model = played
    off = replace(model, means=[model.means[0] * 1.01, *model.means[1:]])
    with pytest.raises(RuntimeError, match=r"(off the mean over all training images|reports an accuracy)"):
        check("plain", off, parts.accuracy, experiment.data())


@pytest.mark.slow
def test_our_round_is_what_it_says(experiment):
    with Ours(experiment) as ours:
        parts, model = ours.round()
        assert min(parts.train, parts.moments, parts.test, ours.start_seconds) > 0
        check("ours", model, parts.accuracy, experiment.data())
        assert 0 < parts.local_accuracy <= 1
        assert ours.default_evaluation(levels=True) > 0
        assert ours.rounds == (200, 10)


def test_our_request_is_that_of_the_command(experiment, tmp_path):
    asked = request(experiment, tmp_path / "run", "--grid", "local", settings={"assignment": "fix"})
    assert asked.clients == CLIENTS
    assert asked.config["sample.fraction"] == 0.5
    assert asked.config["assignment"] == "fix"
    assert asked.config["evaluate.every"] == 10
    assert asked.config["train.epochs"] == 5


@pytest.mark.slow
def test_overhead_compares_the_same_work(experiment):
    found = overhead.measure(experiment, 1, ray=False)["LocalGrid"]
    assert min(found.training, found.round) > 0
    assert found.share == pytest.approx(1 - found.training / found.round)


def test_runs_are_computed_from_the_parts(capsys):
    theirs = Parts(20.0, 6.0, 4.0)
    always, rarely = benchmark.compare_runs(10.0, (2.5, 12.5), theirs, (200, 10), "theirs")
    # Ours: 200 * 10 + 19 * 2.5 + 12.5 = 2,060 s; theirs: 200 * 30 = 6,000 s, or 200 * 20 + 20 * 10 = 4,200 s.
    assert not always.met
    assert always.shown == "200 rounds 2.91 times as fast (goal 4.8)"
    assert rarely.met
    assert rarely.shown == "with evaluations as rare 2.04 times as fast (goal 2)"
    assert "34.3 min" in capsys.readouterr().out


@pytest.mark.slow
def test_command_ends_with_its_verdict(experiment, capsys):
    code = bench.main(["round", "--root", experiment.root, "--clients", str(CLIENTS), "--overhead", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("FAIL: training" if code else "PASS: training")
    assert any(line.startswith("LocalGrid") for line in lines)


@pytest.mark.parametrize(
    ("ours", "theirs", "passed"),
    [
        (Way([2, 2], {2: 0.9}), None, True),
        (Way([2, 2], {2: 0.8}), None, False),
        (Way([2, 2], {2: 0.9}), Way([3, 3], {1: 0.2, 2: 0.95}), True),
        (Way([2, 2], {2: 0.9}), Way([3, 3], {1: 0.95}), False),
        (Way([2, 2], {2: 0.9}), Way([3, 3], {2: 0.1}), True),
        (Way([2, 2], {}), Way([3, 3], {2: 0.95}), False),
    ],
)
def test_target_is_reached_and_not_later(capsys, ours, theirs, passed):
    assert target.verdict(ours, theirs, 0.9) is passed
    assert capsys.readouterr().out.startswith("\nPASS" if passed else "\nFAIL")


def test_way_tells_when_it_arrived():
    way = Way([10.0, 20.0, 30.0, 40.0], {2: 0.5, 4: 0.9})
    assert way.describe(0.5) == "round 2, 30 s, accuracy 0.5000"
    assert way.describe(0.95) == "not in 4 rounds; best 0.9000"


def options(**own) -> Namespace:
    given = {"target": 0.99, "every": 1, "assignment": "fix", "most": 2, "authors": None, "work": None}
    return Namespace(**{**given, **own})


@pytest.mark.slow
def test_target_goes_on_after_a_break(experiment, tmp_path, capsys):
    first = target.run_ours(experiment, options(most=1), tmp_path / "ours")
    assert len(first.seconds) == 1
    again = target.run_ours(experiment, options(most=2), tmp_path / "ours")
    assert again.seconds[:1] == first.seconds
    assert list(again.accuracies) == [1, 2]
    # What is done is not done again.
    goal = again.accuracies[1]
    assert target.run_ours(experiment, options(target=goal, most=9), tmp_path / "ours") == again


def test_both_sides_have_the_levels_that_were_asked_for(experiment, tmp_path):
    other = replace(experiment, mix="d1-e1")
    assert request(other, tmp_path).config["mix"] == "d1-e1"
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train_classifier_fed.py").touch()
    assert "_iid_fix_d1-e1_bn_" in Authors(tmp_path, other.data, other.control(), 1)._order["control"]


@pytest.mark.slow
def test_target_ends_with_its_verdict(experiment, tmp_path, capsys):
    line = ["round", "--root", experiment.root, "--clients", str(CLIENTS), "--target", "1.1", "--every", "1"]
    assert bench.main([*line, "--most", "1", "--work", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(told.startswith("ours: not in 1 rounds; best 0.") for told in lines)
    assert lines[-1] == "FAIL: ours has not reached 1.1"


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
def test_authors_go_on_as_if_there_was_no_break(checkout, experiment, tmp_path):
    state = tmp_path / "state.pt"
    what = (checkout, experiment.data, experiment.control("dynamic"), 1)
    with Authors(*what, balanced=False) as side:
        whole = [side.play(evaluate=True) for _ in range(2)]
    for _ in range(2):
        with Authors(*what, balanced=False, state=state) as side:
            side.play(evaluate=True)
    assert [parts.accuracy for parts in side.history] == [parts.accuracy for parts in whole]
    assert [parts.local_accuracy for parts in side.history] == [parts.local_accuracy for parts in whole]


@pytest.mark.parity
def test_authors_other_experiment_does_not_go_on(checkout, experiment, tmp_path):
    state = tmp_path / "state.pt"
    with Authors(checkout, experiment.data, experiment.control(), 1, balanced=False, state=state) as side:
        side.play(evaluate=False)
    with (
        pytest.raises(HeteroFLError, match=r"holds .*_iid_fix_.*, another experiment"),
        Authors(checkout, experiment.data, experiment.control("dynamic"), 1, balanced=False, state=state),
    ):
        pass


def test_a_folder_without_their_code_is_refused(experiment, tmp_path):
    with pytest.raises(ConfigError, match="expected a checkout of the authors' repository"):
        Authors(tmp_path, experiment.data, experiment.control(), 1)


def test_a_folder_without_their_code_ends_the_command(experiment, tmp_path, capsys):
    line = ["round", "--root", experiment.root, "--clients", str(CLIENTS), "--target", "0.1", "--most", "0"]
    assert bench.main([*line, "--authors", str(tmp_path), "--work", str(tmp_path / "work")]) == 2
    assert capsys.readouterr().err.startswith("simulations.bench: ")


def test_model_keeps_the_order_of_layers(played):
    _, model = played
    module = model.build()
    again = Model.of(module)
    for one, two in zip(
        [*model.parameters, *model.means, *model.variances],
        [*again.parameters, *again.means, *again.variances],
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)
