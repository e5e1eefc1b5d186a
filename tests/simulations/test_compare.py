"""Methods beside one another, from run folders whose numbers one can check by hand."""

import csv

import pytest

from heterofl_flwr.nn.models import PAPER
from heterofl_flwr.nn.profile import profile
from heterofl_flwr.report.drawing import to_svg_file
from heterofl_flwr.settings import from_flat
from simulations.compare import __main__ as command
from simulations.compare.curves import curve, draw, spent_until
from simulations.compare.methods import contestants, method_of, multiplications
from simulations.paper.runs import read_runs

WHOLE = {"mix": "a1", "assignment": "fix", "server.weights": "examples", "train.mask-fill": "none"}
MLP = 784 * 512 + 512 * 256 + 256 * 256 + 256 * 128 + 128 * 10
"""Multiplications of one image in the baselines' MLP."""


def runs_in(tmp_path):
    return read_runs([tmp_path / "runs"])[0]


def points(*values):
    return {round_: {"global-accuracy": value, "local-accuracy": 0.5} for round_, value in values}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "HeteroFL"),
        ({"server.choose": "rolling"}, "FedRolex"),
        ({"server.choose": "random-client"}, "Federated Dropout"),
        ({"train.ordered-dropout": True}, "FjORD"),
        (WHOLE, "FedAvg"),
        ({**WHOLE, "server.shared": ""}, "Standalone"),
        ({**WHOLE, "server.shared": "linear.*"}, "LG-FedAvg"),
        ({**WHOLE, "server.strategy": "fedh2l"}, "FedH2L"),
        ({"server.strategy": "hybrid"}, "HeteroFL and FedH2L"),
    ],
)
def test_a_method_is_told_by_its_settings(changes, name):
    assert method_of(from_flat({"data.name": "mnist", **changes})) == name


def test_runs_that_differ_in_the_seed_alone_are_one_method(make_run, tmp_path):
    for seed, last in ((0, 0.8), (1, 0.9)):
        make_run(f"s{seed}", points((1, 0.3), (2, last)), num_rounds=2, seed=seed, evaluate__every=1 + seed)
    make_run("other", points((2, 0.7)), num_rounds=2, train__lr=0.5)
    make_run("unfinished", rounds=1, num_rounds=2, mix="d1")
    make_run("elsewhere", points((2, 0.7)), num_rounds=2, data__split="non-iid-2")
    found = contestants(runs_in(tmp_path))
    assert {place: [one.label for one in own] for place, own in found.items()} == {
        ("mnist", "iid"): ["HeteroFL e, cnn, train.lr=0.01", "HeteroFL e, cnn, train.lr=0.5"],
        ("mnist", "noniid"): ["HeteroFL e, cnn"],
    }
    both = found["mnist", "iid"][0]
    assert [run.seed for run in both.runs] == [0, 1]
    ends = curve(both, "global-accuracy", "rounds")
    assert [(point.spent, point.reached.mean) for point in ends] == [(1, pytest.approx(0.3)), (2, pytest.approx(0.85))]


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


def keywords(settings):
    return {key.replace(".", "__"): value for key, value in settings.items()}


def test_multiplications_of_training_are_three_forward_passes_of_each_example(make_run, tmp_path):
    make_run("run", num_rounds=2, model__name="mlp", train__epochs=5, **keywords(WHOLE))
    (run,) = runs_in(tmp_path)
    # A tenth of 60,000 images, five times.
    assert multiplications(run) == pytest.approx([3 * 30_000 * MLP, 6 * 30_000 * MLP])


def test_seed_steps_count_too_and_each_client_has_its_own_architecture(make_run, tmp_path):
    settings = {**WHOLE, "server.strategy": "fedh2l", "distill.models": "mlp", "distill.steps": 7}
    settings |= {"distill.seed-batch": 50, "train.epochs": 1, "train.batch-size": 10}
    make_run("run", num_rounds=1, **keywords(settings))
    (run,) = runs_in(tmp_path)
    client = 3 * 600 * MLP + 7 * 3 * (10 + 50) * MLP + 50 * MLP
    assert multiplications(run) == pytest.approx([10 * client])


def test_ordered_dropout_counts_the_mean_of_the_models_inside(make_run, tmp_path):
    make_run("plain", num_rounds=1, mix="a1-e1")
    make_run("ordered", num_rounds=1, mix="a1-e1", train__ordered_dropout=True)
    spent = {run.path.name: multiplications(run)[0] for run in runs_in(tmp_path)}
    small = 3 * 30_000 * profile(PAPER["mnist"].build()(0.0625), PAPER["mnist"].example()).macs
    assert spent["ordered"] == pytest.approx((spent["plain"] + small) / 2)  # the fixture's clients are all a


def test_the_command_writes_tables_values_and_figures(make_run, tmp_path, capsys):
    for seed in range(3):
        make_run(f"h{seed}", points((1, 0.4), (2, 0.90 + seed / 100)), num_rounds=2, seed=seed)
    make_run("alone", points((2, 0.2)), num_rounds=2, server__shared="", assignment="fix")
    make_run("begun", rounds=1, num_rounds=2, mix="d1")
    out = tmp_path / "out"
    assert command.main([str(tmp_path / "runs"), "--out", str(out), "--target", "0.9"]) == 0
    text = (out / "compare.md").read_text(encoding="utf-8")
    assert "| HeteroFL e, cnn | 0, 1, 2 | 2 | 91.0 ± 1.0 % | 50.0 ± 0.0 % | 20 B |" in text
    assert "| HeteroFL e, cnn | 3 of 3 | 2 | 400 B |" in text
    assert "| Standalone e, cnn | 0 of 1 | - | - | - | - |" in text
    assert "left out, unfinished: iid_d_fix" in text
    assert str(tmp_path) not in text
    with (out / "compare-mnist-iid.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 + 1
    assert {row["global-accuracy"] for row in rows if row["seed"] == "2"} == {"0.4", "0.92"}
    shown = {f"figures/{path.name}" for path in (out / "figures").iterdir()}
    assert len(shown) == 2 * 4
    assert all(f"({name})" in text for name in shown)
    assert "2 methods on 1 splits" in capsys.readouterr().out


def test_time_and_energy_are_there_where_devices_were_simulated(make_run, tmp_path):
    folder = make_run("run", points((1, 0.4), (2, 0.9)), num_rounds=2)
    history = folder.path / "history.jsonl"
    lines = history.read_text(encoding="utf-8").replace('"joules": 0.0', '"joules": 700.0')
    history.write_text(lines.replace('"simulated_seconds": 0.0', '"simulated_seconds": 90.0'), encoding="utf-8")
    assert command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--target", "0.4"]) == 0
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "| seconds | simulated-seconds | joules |" in text
    assert "| 2.0 s | 1 min 30 s | 700 J |" in text
    assert "| 4.0 s | 3 min 0 s | 1.40 kJ |" in text
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 2 * 6


def test_long_names_leave_room_for_the_curves(make_run, tmp_path):
    for number in range(6):
        own = {"distill__models": "cnn,preresnet18,mlp", "distill__steps": number, "distill__weight": number / 2}
        make_run(f"r{number}", points((1, 0.3), (2, 0.8)), num_rounds=2, server__strategy="fedh2l", **own)
    (found,) = contestants(runs_in(tmp_path)).values()
    assert len(found[0].label) > 60
    assert to_svg_file(draw(found, "global-accuracy", "rounds"), "test")  # a figure without room is a warning


def test_figures_whose_runs_are_gone_are_removed_and_without_a_finished_run_it_is_an_error(make_run, tmp_path, capsys):
    old = tmp_path / "out" / "figures" / "compare-old.svg"
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    make_run("begun", rounds=1, num_rounds=2)
    assert command.main(arguments) == 2
    assert "no finished run in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    make_run("run", points((2, 0.5)), num_rounds=2)
    old.parent.mkdir(parents=True)
    old.touch()
    assert command.main(arguments) == 0
    assert not old.exists()


def test_what_costs_nothing_is_a_line_where_the_axis_is_logarithmic(make_run, tmp_path):
    make_run("cheap", points((1, 0.4), (100, 0.9)), num_rounds=100)
    folder = make_run("nothing", points((100, 0.2)), num_rounds=100, server__shared="", assignment="fix")
    history = folder.path / "history.jsonl"
    history.write_text(history.read_text(encoding="utf-8").replace('": 100, "bytes_up": 100', '": 0, "bytes_up": 0'))
    (own,) = contestants(runs_in(tmp_path)).values()
    axes = draw(own, "global-accuracy", "bytes").axes[0]
    assert axes.get_xscale() == "log"
    assert any("for nothing" in line.get_label() for line in axes.lines)
    assert draw(own, "global-perplexity", "bytes") is None
