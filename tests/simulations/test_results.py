"""Results of sweeps, from run folders whose numbers one can check by hand."""

import json
import math
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from heterofl_flwr.common.files import write_atomic
from heterofl_flwr.common.user_code import VARIABLE
from heterofl_flwr.settings.method_name import method_name
from heterofl_flwr.settings.validate import from_flat
from simulations.fedh2l_data import digits_seeds
from simulations.results import __main__ as command
from simulations.results.configurations import configurations
from simulations.results.levels import levels_table
from simulations.results.runs import Score, read_run, read_runs
from simulations.results.spent import EXAMPLES, bytes_sent, curve, multiplications, spent_until
from simulations.results.statistics import PERCENT, Summary, summarise
from simulations.results.tables import spent_table, target_table
from tests.simulations.conftest import COMMIT

WHOLE = {"mix": "a1", "assignment": "fix", "server.weights": "examples", "train.mask-fill": "none"}
ROOT = Path(__file__).parents[2]
KEPT = ROOT / "results" / "tables"
MACS = 10
"""Multiplications of one image in the fixture's models."""


def runs_in(tmp_path):
    return read_runs([tmp_path / "runs"])[0]


def points(*values):
    return {round_: {"global-accuracy": value, "local-accuracy": 0.5} for round_, value in values}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "HeteroFL"),
        ({"server.slice-rule": "rolling"}, "FedRolex"),
        ({"train.distill": "drawn"}, "FjORD"),
        ({"model.shrink": "depth"}, "depth"),
        ({"model.shrink": "b=1:0.5,c=1:0.5,d=1:0.5,e=1:0.5", "train.exits": "deepest"}, "ScaleFL"),
        (WHOLE, "FedAvg"),
        ({**WHOLE, "server.shared": ""}, "Standalone"),
        ({**WHOLE, "server.shared": "linear.*"}, "LG-FedAvg"),
        ({**WHOLE, "mix": "e", "global-rate": "a", "server.slice-rule": "rolling"}, "FedRolex"),
        ({"server.strategy": "fedh2l", "distill.models": "mlp"}, "FedH2L (variant)"),
        ({"mix": "a"}, "HeteroFL"),
        ({"server.stages": "scaffold", "train.momentum": 0.0}, "SCAFFOLD"),
        ({"server.stages": "my_scaffold:Stage(2)"}, "HeteroFL"),
    ],
)
def test_a_method_is_told_by_its_settings(changes, name):
    assert method_name(from_flat({"data.name": "mnist", **changes})) == name


def test_runs_with_other_seeds_are_one_configuration(make_run, tmp_path):
    for seed, last in ((0, 0.8), (1, 0.9)):
        make_run(f"s{seed}", points((1, 0.3), (2, last)), num_rounds=2, seed=seed, evaluate__every=1 + seed)
    make_run("other", points((2, 0.7)), num_rounds=2, train__lr=0.5)
    make_run("unfinished", rounds=1, num_rounds=2, mix="d1")
    make_run("elsewhere", points((2, 0.7)), num_rounds=2, data__split="non-iid-2")
    found = configurations(runs_in(tmp_path))
    assert {place: [one.label for one in own] for place, own in found.items()} == {
        ("mnist", "iid"): ["HeteroFL e, cnn, train.lr=0.01", "HeteroFL e, cnn, train.lr=0.5"],
        ("mnist", "noniid"): ["HeteroFL e, cnn"],
    }
    both = found["mnist", "iid"][0]
    assert [run.seed for run in both.runs] == [0, 1]
    ends = curve(both, "global-accuracy")
    assert [(point.spent, point.reached.mean) for point in ends] == [(1, pytest.approx(30)), (2, pytest.approx(85))]


def test_what_is_spent_adds_up_until_a_target_is_reached(make_run, tmp_path):
    make_run("run", points((2, 0.5), (4, 0.8)), num_rounds=4, mix="a1")
    make_run("text", {1: {"global-perplexity": 9.0}, 2: {"global-perplexity": 7.0}}, num_rounds=2)
    text, run = sorted(runs_in(tmp_path), key=lambda run: run.rounds)
    # A record of the fixture has 200 bytes and 2 seconds.
    assert spent_until(run, "global-accuracy", 0.8, "bytes") == 800
    assert spent_until(run, "global-accuracy", 0.5, "seconds") == 4
    assert spent_until(run, "global-accuracy", 0.4, "rounds") == 2
    assert spent_until(run, "global-accuracy", 0.9, "rounds") is None
    assert spent_until(text, "global-perplexity", 8.0, "rounds") == 2  # from above


def test_the_seed_set_is_charged_once_to_each_client(make_run, tmp_path):
    own = {"server__strategy": "fedh2l", "assignment": "fix", "distill__models": "mlp"}
    own |= {"distill__seed_size": 50, "distill__seed_batch": 50}
    make_run("run", points((2, 0.5)), num_rounds=2, **own)
    (run,) = runs_in(tmp_path)
    # Ten clients, the same in both rounds, get 50 images of 784 bytes with labels; messages have 200 bytes a round.
    assert bytes_sent(run) == [10 * 50 * 785 + 200, 10 * 50 * 785 + 400]


def test_levels_stand_beside_themselves_alone_paired_by_seed(make_run, tmp_path):
    for seed, (own, alone) in enumerate([(0.75, 0.5), (0.5, 0.375), (0.625, 0.5)]):
        mix = {"num_rounds": 2, "mix": "a1-e1", "assignment": "fix", "seed": seed}
        _set_levels(make_run(f"mix{seed}", points((2, 0.9)), **mix), {"a": 0.75, "e": own})
        ordered = make_run(f"ordered{seed}", points((2, 0.9)), train__distill="ordered", **mix)
        _set_levels(ordered, {"a": 0.75, "e": own - 0.25})
        # The first is nearest.
        for name, more in (("e", {}), ("lr", {"train__lr": 0.5}), ("gn", {"model__norm": "gn"})):
            run = make_run(f"{name}{seed}", points((2, alone)), num_rounds=2, assignment="fix", seed=seed, **more)
            _set_levels(run, {"e": alone - 0.25 * bool(more)})
    (found,) = configurations(runs_in(tmp_path)).values()
    rows = {name: (seeds, *cells) for _, name, seeds, *cells in levels_table(found, "global-accuracy").rows}
    every, heterofl, fjord = "0, 1, 2", "HeteroFL, cnn", "FjORD without distillation, cnn"
    # Differences of 25, 12.5 and 12.5 points: their mean, and 4.3027 / sqrt(3) times their deviation. Records of the
    # fixture say that ten clients train at rate 1 in each of two rounds; each model has as many multiplications there.
    assert rows == {
        heterofl: (every, "75.00 ± 0.00", "62.50 ± 12.50", "0.67 / 1.98 / 0.67"),
        fjord: (every, "75.00 ± 0.00", "37.50 ± 12.50", "0.67 / 1.98 / 0.67"),
        "alone, equal participation": (every, "", "45.83 ± 7.22", ""),
        "trainings, in the mix": (every, "20", "0", ""),
        "trainings, equal participation": (every, "", "0", ""),
        f"{heterofl}, less equal participation": (every, "", "+16.67 [-1.26, +34.59]", ""),
        f"{fjord}, less equal participation": (every, "", "-8.33 [-26.26, +9.59]", ""),
        f"{fjord}, less HeteroFL": (every, "+0.00 [+0.00, +0.00]", "-25.00 [-25.00, -25.00]", ""),
    }


def test_a_mix_whose_clients_keep_layers_has_no_price(make_run, tmp_path):
    run = make_run("kept", points((2, 0.9)), num_rounds=2, mix="a1-e1", assignment="fix", server__shared="linear.*")
    _set_levels(run, {"a": 0.5})
    (found,) = configurations(runs_in(tmp_path)).values()
    assert [row[-1] for row in levels_table(found, "global-accuracy").rows] == [""]


@pytest.mark.parametrize(
    ("mix", "alone", "clients", "epochs", "baseline"),
    [
        ("a1-e1", "a1", 10, 1, None),  # also the clients that cannot hold it
        ("a1-e1", "a1-x1", 5, 1, "equal participation"),
        ("a1-e1", "a1-x1", 10, 1, "equal work"),
        ("a1-e1", "a1-x1", 10, 2, None),
        ("a1-e1", "a1-x1", 20, 1, None),
        ("a1-e1", "a1-x3", 5, 1, None),  # half of the clients that can hold it
        ("a1-b1-c1-d1", "a1-x3", 3, 1, "equal participation"),  # 2.5 of the 10, and part of a client is rounded up
    ],
)
def test_a_level_alone_is_a_baseline_by_participation_or_by_work(
    make_run, tmp_path, mix, alone, clients, epochs, baseline
):
    # In the mix, 10 of 100 clients train in each round, for an epoch.
    for name, own, number, each in (("mix", mix, 10, 1), ("alone", alone, clients, epochs)):
        options = {"num_rounds": 2, "assignment": "fix", "train__epochs": each}
        run = make_run(name, points((2, 0.9)), mix=own, clients=number, **options)
        _set_levels(run, {"a": 0.5})
    (found,) = configurations(runs_in(tmp_path)).values()
    rows = {name: cell for _, name, _, cell, *_ in levels_table(found, "global-accuracy").rows}
    expected = {f"alone, {baseline}": "50.00", f"trainings, {baseline}": str(2 * clients)} if baseline else {}
    assert {name: cell for name, cell in rows.items() if "equal" in name and "less" not in name} == expected


def test_a_levels_accuracy_can_be_the_mean_of_its_last_evaluations(make_run, tmp_path):
    run = make_run("mix", points((2, 0.9)), num_rounds=5, mix="a1-e1", assignment="fix")
    for number, own in enumerate([0.1, 0.25, 0.5, 0.75]):
        _set_levels(run, {"a": own}, number)
    _set_levels(run, {"a": 0.0}, evaluate_asked=3, evaluate_answers=1)  # too few clients
    assert read_run(run.path).score("global-accuracy/a") == Score(0.75, 0.25, 2)
    (found,) = configurations(runs_in(tmp_path)).values()
    cells = [[row[3] for row in levels_table(found, "global-accuracy", last).rows] for last in (1, 3, 5)]
    assert cells == [["75.00"], ["50.00"], []]  # fewer than five evaluations have no such mean


def test_a_level_that_was_not_evaluated_in_the_best_round_has_no_best_value(make_run):
    run = make_run("mix", points((1, 0.9), (2, 0.8)), num_rounds=2, mix="a1-e1", assignment="fix")
    _set_levels(run, {"e": 0.7})
    final, best, best_round = read_run(run.path).score("global-accuracy/e")
    assert (final, math.isnan(best), best_round) == (0.7, True, 1)


def _set_levels(folder, accuracies, number=-1, **more):
    """Write what each level's own model reached, and more, into a round's record, by default the last one's."""
    path = folder.path / "history.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    levels = {level: {"global-accuracy": own} for level, own in accuracies.items()}
    lines[number] = json.dumps({**json.loads(lines[number]), "evaluate_by_level": levels, **more})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_run_without_simulated_devices_has_no_simulated_costs_beside_one_with_them(make_run, tmp_path):
    make_run("plain", points((1, 0.9)), num_rounds=1)
    edge = make_run("edge", points((1, 0.9)), num_rounds=1, devices__profile="edge")
    _set_levels(edge, {}, simulated_seconds=2.0, joules=3.0)
    (found,) = configurations(runs_in(tmp_path)).values()
    for table in (spent_table(found), target_table(found, "global-accuracy", 0.5)):
        assert sorted(row[-2:] for row in table.rows) == [("-", "-"), ("2.0 s", "3 J")]


@pytest.mark.parametrize(("asked", "dealt"), [(10, 100), (3, 5), (11, 100)])
def test_training_multiplies_three_forward_passes_an_example_of_each_asked_client(make_run, tmp_path, asked, dealt):
    # Half of five clients are three; with sample.spare more are asked than sample.fraction says.
    more = {"train.epochs": 5, "sample.min-nodes": 2, **WHOLE}
    make_run("run", num_rounds=2, clients=asked, **more).note(clients=dealt)
    (run,) = runs_in(tmp_path)
    images = 5 * asked * 60_000 / dealt  # in a round
    assert multiplications(run) == pytest.approx([3 * images * MACS, 6 * images * MACS])


def test_clients_that_were_sent_nothing_multiply_nothing(make_run):
    run = make_run("run", num_rounds=2, clients=10, **WHOLE)
    path = run.path / "history.jsonl"
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    path.write_text("".join(f"{json.dumps(one)}\n" for one in (first, {**second, "unsent": [0, 3]})), encoding="utf-8")
    before, after = multiplications(read_run(run.path))
    assert (after - before) / before == pytest.approx(0.8)


def test_the_seed_set_has_the_number_of_examples_that_tables_know():
    assert EXAMPLES["simulations.fedh2l_data:digits_seeds"] == len(digits_seeds().train)


def test_the_best_round_is_that_of_the_global_metric(make_run):
    evaluated = {
        100: {"global-accuracy": 0.5, "local-accuracy": 0.99},
        200: {"global-accuracy": 0.7, "local-accuracy": 0.8},
        300: {"global-accuracy": 0.7, "local-accuracy": 0.9},
        400: {"global-accuracy": 0.6, "local-accuracy": 0.95},
    }
    run = read_run(make_run(evaluated=evaluated, data__split="non-iid-2").path)
    assert run.score("global-accuracy") == Score(0.6, 0.7, 200)
    assert run.score("local-accuracy") == Score(0.95, 0.8, 200)


def test_a_run_that_lacks_a_round_is_unfinished(make_run):
    folder = make_run()
    lines = (folder.path / "history.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for kept in (lines[:-1], lines[1:]):
        (folder.path / "history.jsonl").write_text("".join(kept), encoding="utf-8")
        assert not read_run(folder.path).finished


def test_the_command_writes_tables_values_and_figures(make_run, printed, tmp_path):
    for seed, accuracy in enumerate([0.985, 0.987, 0.986]):
        evaluated = {100: {"global-accuracy": accuracy}, 200: {"global-accuracy": accuracy - 0.001}}
        make_run(f"e{seed}", evaluated, seed=seed)
    make_run("figure", mix="a1-e9", assignment="fix")
    make_run("elsewhere", data__split="non-iid-2", commit=f"{COMMIT}-dirty")
    make_run("again", {200: {"global-accuracy": 0.98}}, mix="b1").note(starts=["2020-01-01"])
    make_run("later", {200: {"global-accuracy": 0.99}}, mix="b1")
    out = tmp_path / "out"
    stale, other = out / "figures" / "stale.svg", out / "figures" / "loss.png"  # the second is of a report
    for path in (stale, other):
        write_atomic(path, b"")
    words = [str(tmp_path / "runs"), "--paper", str(printed), "--target", "0.9", "--out", str(out), "--curves"]
    assert command.main(words) == 0
    found = {path.name for path in out.iterdir()}
    assert found == {"tables.md", "tables.tex", "runs.csv", "curves.csv", "claims.md", "figures"}
    assert (stale.exists(), other.exists()) == (False, True)
    text = (out / "tables.md").read_text(encoding="utf-8")
    # Deviation 0.1; half the interval is 4.3027 * 0.1 / sqrt(3) = 0.2484.
    assert "| 98.50 ± 0.10 [98.25, 98.75] | 98.60 ± 0.10 [98.35, 98.85] |" in text
    assert "| again | a later run has its settings and seed |" in text
    assert "- With commits: 0123456, 0123456-dirty\n" in text
    labels = re.findall(r"\\label\{(.*)\}", (out / "tables.tex").read_text(encoding="utf-8"))
    assert {"tab:reached-mnist-iid", "tab:reached-mnist-noniid"} <= set(labels)
    assert len(labels) == len(set(labels))


def test_data_sets_that_folders_name_as_functions_are_loaded_only_with_trust(make_run, tmp_path, monkeypatch, capsys):
    made, calls = make_run(data__name="mydata:load", num_rounds=1), []
    monkeypatch.setenv(VARIABLE, '["", []]')  # which --trust changes
    monkeypatch.setitem(sys.modules, "mydata", types.SimpleNamespace(load=lambda: calls.append("called")))
    assert (command.main([str(tmp_path / "runs")]), calls) == (2, [])
    assert f"the settings of {made.path} name code (data.name=mydata:load)" in capsys.readouterr().err
    assert (command.main([str(tmp_path / "runs"), "--trust"]), calls) == (0, ["called"])
    made.path.rename(tmp_path / "other")
    make_run(data__name="heterofl_flwr.experiments.small_mnist:load", num_rounds=1)
    assert command.main([str(tmp_path / "runs")]) == 0


@pytest.mark.slow
def test_the_kept_tables_claims_and_figures_are_what_the_command_makes_of_the_kept_runs(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # tables name the runs by their paths
    assert command.main(["results/paper", "--out", str(tmp_path), "--paper", str(shared / "paper")]) == 0
    made = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    kept = {str(path.relative_to(KEPT)): path for path in KEPT.rglob("*") if path.is_file()}
    assert made.keys() == kept.keys()
    # Figures hold the version of Matplotlib, and differ between versions.
    assert [
        name for name in made if not name.endswith(".svg") and made[name].read_text() != kept[name].read_text()
    ] == []


def test_an_interval_needs_three_values_a_deviation_two():
    assert summarise([3.0]) == Summary(1, 3.0, (3.0, 3.0))
    two, three = summarise([1.0, 3.0]), summarise([1.0, 2.0, 3.0])
    assert (two.number, two.mean, two.interval) == (2, 2.0, None)
    assert two.deviation == pytest.approx(math.sqrt(2))
    # Deviation 1; the quantile of t with 2 degrees of freedom is 4.3027.
    assert three.deviation == pytest.approx(1.0)
    assert three.interval == three.ends == pytest.approx((2 - 2.484138, 2 + 2.484138), rel=1e-6)
    assert (summarise([3.0]).ends, two.ends) == ((3.0, 3.0), pytest.approx((1.0, 3.0)))


def test_no_interval_of_percentages_leaves_them():
    summary = summarise([99.0, 99.5, 99.9], PERCENT)
    assert summary.interval[1] == summary.prediction[1] == 100.0
    assert summarise([0.0, 1.0, 3.0], PERCENT).interval[0] == 0.0


def test_the_detectable_mean_is_that_of_a_power_of_80_percent():
    # Draw many samples of three values around that mean: four fifths of their intervals leave out 0.
    found = summarise([1.0, 2.0, 3.0])
    samples = np.random.default_rng(0).normal(found.detectable, 1.0, (100_000, 3))
    errors = samples.std(axis=1, ddof=1) / math.sqrt(3)
    assert (samples.mean(axis=1) > 4.302653 * errors).mean() == pytest.approx(0.8, abs=0.005)
    assert summarise([1.0, 3.0]).detectable is None


@pytest.mark.parametrize("values", [[math.nan, 1.0, 2.0], [math.inf, 1.0, 2.0], [math.inf, -math.inf, 1.0]])
def test_a_run_that_diverged_leaves_no_interval_of_use(values):
    found = summarise(values, PERCENT)
    assert found.mean == pytest.approx(sum(values) / 3, nan_ok=True)
    assert all(map(math.isnan, (found.deviation, *found.interval)))
