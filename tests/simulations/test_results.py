"""Results of sweeps, from run folders whose numbers one can check by hand."""

import csv
from dataclasses import replace
from itertools import pairwise

import pytest

from heterofl_flwr.nn.models import PAPER
from heterofl_flwr.nn.profile import profile
from heterofl_flwr.report.drawing import series, to_svg_file
from heterofl_flwr.runs.costs import LevelCost
from heterofl_flwr.settings import from_flat
from simulations.results import __main__ as command
from simulations.results.configurations import bytes_sent, configurations, multiplications
from simulations.results.curves import axes_of, curve, spent_until
from simulations.results.figures import draw_curves, draw_levels, draw_reached
from simulations.results.runs import method_of, read_run, read_runs
from simulations.results.tables import (
    LevelReached,
    curves_csv,
    jobs_csv,
    levels_table,
    metrics_of,
    reached,
    reached_by_level,
    reached_table,
    results_csv,
)
from simulations.statistics import PERCENT, Summary

WHOLE = {"mix": "a1", "assignment": "fix", "server.weights": "examples", "train.mask-fill": "none"}
MLP = 784 * 512 + 512 * 256 + 256 * 256 + 256 * 128 + 128 * 10
"""Multiplications of one image in the baselines' MLP."""


def runs_in(tmp_path):
    return read_runs([tmp_path / "runs"], read_run)[0]


def points(*values):
    return {round_: {"global-accuracy": value, "local-accuracy": 0.5} for round_, value in values}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "HeteroFL"),
        ({"server.choose": "rolling"}, "FedRolex"),
        ({"server.choose": "random-client"}, "Federated Dropout"),
        ({"train.distill": "drawn"}, "FjORD"),
        ({"model.shrink": "depth"}, "depth"),
        ({"model.shrink": "depth", "train.exits": "mutual"}, "DepthFL"),
        ({"model.shrink": "depth", "server.block-momentum": 0.2}, "InclusiveFL"),
        ({"model.shrink": "b=1:0.5,c=1:0.5,d=1:0.5,e=1:0.5", "train.exits": "deepest"}, "ScaleFL"),
        (WHOLE, "FedAvg"),
        ({**WHOLE, "server.shared": ""}, "Standalone"),
        ({**WHOLE, "server.shared": "linear.*"}, "LG-FedAvg"),
        ({**WHOLE, "server.strategy": "fedh2l"}, "FedH2L"),
    ],
)
def test_a_method_is_told_by_its_settings(changes, name):
    assert method_of(from_flat({"data.name": "mnist", **changes})) == name


def test_runs_that_differ_in_the_seed_alone_are_one_configuration(make_run, tmp_path):
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


def test_what_too_few_clients_gave_reaches_no_target_and_is_marked_or_left_out(make_run, tmp_path):
    def with_few(run, rounds):
        return replace(
            run,
            records=[
                replace(one, partial=("global-accuracy",)) if one.server_round in rounds else one for one in run.records
            ],
        )

    make_run("run", points((1, 0.9), (2, 0.5), (3, 0.7)), num_rounds=3)
    (run,) = runs_in(tmp_path)
    first, last, every = (with_few(run, rounds) for rounds in ((1,), (3,), (1, 2, 3)))
    assert spent_until(first, "global-accuracy", 0.6, "rounds") == 3
    assert spent_until(every, "global-accuracy", 0.6, "rounds") is None

    def places(own):
        return {("mnist", "iid"): configurations([own])["mnist", "iid"]}

    shown = {name: reached_table(places(own)["mnist", "iid"]) for name, own in (("first", first), ("last", last))}
    assert [(row[-2:], "With *" in table.note) for table in shown.values() for row in table.rows[:1]] == [
        (("70.00", "70.00"), False),
        (("70.00 *", "90.00"), True),
    ]
    assert reached_table(places(every)["mnist", "iid"]).rows[0][-2:] == ("70.00 *", "70.00 *")
    (job, _) = csv.DictReader(jobs_csv(places(last)).splitlines())
    assert (job["final"], job["best"], job["best-round"]) == ("", "90.0", "1")
    (result, _) = csv.DictReader(results_csv(places(last)).splitlines())
    assert (result["final-mean"], result["best-mean"]) == ("", "90.0")
    assert [row["global-accuracy"] for row in csv.DictReader(curves_csv(places(last)).splitlines())] == [
        "0.9",
        "0.5",
        "",
    ]


def test_the_seed_set_is_charged_once_to_each_client_that_takes_part(make_run, tmp_path):
    own = {"server__strategy": "fedh2l", "distill__models": "mlp", "distill__seed_size": 50}
    make_run("run", points((2, 0.5)), num_rounds=2, **own)
    (run,) = runs_in(tmp_path)
    # Ten clients, the same in both rounds, get 50 images of 784 bytes with labels; messages have 200 bytes a round.
    assert bytes_sent(run) == [10 * 50 * 785 + 200, 10 * 50 * 785 + 400]


def keywords(settings):
    return {key.replace(".", "__"): value for key, value in settings.items()}


def test_multiplications_of_training_are_three_forward_passes_of_each_example(make_run, tmp_path):
    make_run("run", num_rounds=2, model__name="mlp", train__epochs=5, **keywords(WHOLE))
    (run,) = runs_in(tmp_path)
    # A tenth of 60,000 images, five times.
    assert multiplications(run) == pytest.approx([3 * 30_000 * MLP, 6 * 30_000 * MLP])


@pytest.mark.parametrize(("asked", "dealt"), [(3, 5), (11, 100)])
def test_each_client_that_was_asked_trains_on_its_own_share_of_the_examples(make_run, tmp_path, asked, dealt):
    # Half of five clients are three; with sample.spare more are asked than sample.fraction says.
    more = {"model__name": "mlp", "train__epochs": 1, "sample__min_nodes": 2, **keywords(WHOLE)}
    make_run("run", num_rounds=1, clients=asked, **more).note(clients=dealt)
    (run,) = runs_in(tmp_path)
    assert multiplications(run) == pytest.approx([3 * asked * 60_000 / dealt * MLP])


def test_seed_steps_count_too_and_each_client_has_its_own_architecture(make_run, tmp_path):
    settings = {**WHOLE, "server.strategy": "fedh2l", "distill.models": "mlp", "distill.steps": 7}
    settings |= {"distill.seed-batch": 50, "train.epochs": 1, "train.batch-size": 10}
    make_run("run", num_rounds=1, **keywords(settings))
    (run,) = runs_in(tmp_path)
    client = 3 * 600 * MLP + 7 * 3 * (10 + 50) * MLP + 50 * MLP
    assert multiplications(run) == pytest.approx([10 * client])


def test_ordered_dropout_counts_the_mean_of_the_models_inside(make_run, tmp_path):
    make_run("plain", num_rounds=1, mix="a1-e1")
    make_run("ordered", num_rounds=1, mix="a1-e1", train__distill="ordered")
    spent = {run.path.name: multiplications(run)[0] for run in runs_in(tmp_path)}
    small = 3 * 30_000 * profile(PAPER["mnist"].build()(0.0625), PAPER["mnist"].example()).macs
    assert spent["ordered"] == pytest.approx((spent["plain"] + small) / 2)  # the fixture's clients are all a


def three_seeds(make_run, *lasts):
    for seed, last in enumerate(lasts):
        make_run(f"h{seed}", points((1, last + 0.02), (2, last)), num_rounds=2, seed=seed)


def test_the_command_prints_final_and_best_over_seeds(make_run, tmp_path, capsys):
    three_seeds(make_run, 0.90, 0.91, 0.92)
    make_run("begun", rounds=1, num_rounds=2, mix="d1")
    assert command.main([str(tmp_path / "runs")]) == 0
    out, err = capsys.readouterr()
    # The t distribution's quantile of 2 degrees of freedom is 4.3027; 91 ± 4.3027 / sqrt(3).
    assert "HeteroFL e, cnn  global accuracy  0, 1, 2       2  91.00 ± 1.00 [88.52, 93.48]  93.00 ± 1.00" in out
    assert err == "left out, unfinished: begun, 1 of 2 rounds\n"
    assert command.main([str(tmp_path / "runs"), "--format", "csv"]) == 0
    (row, _) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (row["configuration"], row["metric"], row["seeds"]) == ("HeteroFL e, cnn", "global-accuracy", "0 1 2")
    assert [row[f"final-{name}"] for name in ("mean", "deviation", "low", "high")] == [
        "91.0",
        "1.0",
        "88.5159",
        "93.4841",
    ]
    assert command.main([str(tmp_path / "runs"), "--format", "markdown"]) == 0
    assert "| HeteroFL e, cnn | local accuracy | 0, 1, 2 | 2 | 50.00 ± 0.00 [50.00, 50.00] |" in capsys.readouterr().out


def test_each_levels_own_model_is_shown_where_it_was_evaluated(make_run, tmp_path):
    three_seeds(make_run, 0.90, 0.91, 0.92)
    (own,) = configurations(runs_in(tmp_path)).values()
    assert levels_table(reached_by_level(own), metrics_of(own)) is None

    def with_levels(run):
        found = {"a": {"global-accuracy": 0.5 + run.seed / 10}, "e": {"other": 1.0}}
        return replace(run, records=[*run.records[:-1], replace(run.records[-1], evaluate_by_level=found)])

    evaluated = [replace(own[0], runs=tuple(map(with_levels, own[0].runs)))]
    table = levels_table(reached_by_level(evaluated), metrics_of(evaluated))
    heads = ("configuration", "level", "seeds", "parameters", "multiplications", "bytes", "global accuracy")
    assert table.header == heads
    cost = ("1,556,874", "10", "6.23 MB")
    assert table.rows == (("HeteroFL e, cnn", "a", "0, 1, 2", *cost, "60.00 ± 10.00 [35.16, 84.84]"),)


def test_a_level_that_some_seeds_did_not_evaluate_is_shown_with_those_that_did(make_run, tmp_path):
    three_seeds(make_run, 0.90, 0.91, 0.92)
    ((one,),) = configurations(runs_in(tmp_path)).values()
    by_seed = ({}, {"e": 0.5}, {"e": 0.7, "a": 0.9})

    def with_levels(run):
        levels = {level: {"global-accuracy": value} for level, value in by_seed[run.seed].items()}
        last = replace(run.records[-1], evaluate_by_level=levels)
        return replace(run, records=[*run.records[:-1], last], costs=run.costs if run.seed == 2 else None)

    table = levels_table(reached_by_level([replace(one, runs=tuple(map(with_levels, one.runs)))]), ["global-accuracy"])
    assert [(row[1], row[2], row[3], row[-1]) for row in table.rows] == [
        ("a", "2", "1,556,874", "90.00"),
        ("e", "1, 2", "6,594", "60.00 ± 14.14"),
    ]


def test_levels_are_drawn_over_what_they_compute():
    def level(label, macs, mean):
        cost = LevelCost("b", 0.5, 1, macs, 1, 1)
        return LevelReached(label, "b", cost, {"global-accuracy": Summary(3, mean, 1.0, 2.0, PERCENT)}, (0, 1, 2))

    found = [level("one", 2000, 90), level("one", 100, 99), level("other", 100, 50)]
    labels = ["without levels", "one", "other"]
    axes = draw_levels(found, "global-accuracy", labels).axes[0]
    (line,), (band,) = axes.lines, axes.collections
    assert (line.get_color(), line.get_linestyle()) == series(1)
    assert line.get_xydata().tolist() == [[100, 99], [2000, 90]]
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {(100, 97), (100, 100), (2000, 88), (2000, 92)}
    assert draw_levels(found, "local-accuracy", labels) is None
    assert draw_levels(found[2:], "global-accuracy", labels) is None


def test_no_interval_leaves_0_to_100(make_run, tmp_path):
    three_seeds(make_run, 0.90, 0.98, 0.98)
    make_run("low", points((2, 0.0)), num_rounds=2, mix="d1", seed=0)
    make_run("lower", points((2, 0.05)), num_rounds=2, mix="d1", seed=1)
    make_run("lowest", points((2, 0.0)), num_rounds=2, mix="d1", seed=2)
    (own,) = configurations(runs_in(tmp_path)).values()
    low, high, *_ = reached(own)
    assert (high.best.interval[1], low.final.interval[0]) == (100, 0)
    assert high.final.mean == pytest.approx(95.33, abs=0.01)
    ends = [end for one in own for point in curve(one, "global-accuracy", "rounds") for end in point.reached.interval]
    assert (min(ends), max(ends)) == (0, 1)
    figure = draw_reached([low, high])
    drawn = [end for line in figure.axes[0].lines for end in line.get_xdata()]
    assert (min(drawn), max(drawn)) == (0, 100)


def test_the_command_writes_tables_values_and_figures(make_run, tmp_path, capsys):
    three_seeds(make_run, 0.90, 0.91, 0.92)
    make_run("alone", points((2, 0.2)), num_rounds=2, server__shared="", assignment="fix")
    make_run("begun", rounds=1, num_rounds=2, mix="d1")
    out = tmp_path / "out"
    assert command.main([str(tmp_path / "runs"), "--out", str(out), "--target", "0.9"]) == 0
    text = (out / "results.md").read_text(encoding="utf-8")
    assert "| HeteroFL e, cnn | global accuracy | 0, 1, 2 | 2 | 91.00 ± 1.00 [88.52, 93.48] | 93.00 ± 1.00" in text
    assert "| HeteroFL e, cnn | 20 B | 2 | 400 B |" in text
    assert "| HeteroFL e, cnn | 3 of 3 | 1 | 200 B |" in text
    assert "| Standalone e, cnn | 0 of 1 | - | - | - | - |" in text
    assert "left out, unfinished: begun, 1 of 2 rounds" in text
    assert str(tmp_path) not in text
    tables = {}
    for name in ("results", "jobs", "curves"):
        with (out / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            tables[name] = list(csv.DictReader(file))
    assert {name: len(rows) for name, rows in tables.items()} == {"results": 4, "jobs": 8, "curves": 7}
    assert {row["global-accuracy"] for row in tables["curves"] if row["seed"] == "2"} == {"0.94", "0.92"}
    (job,) = (row for row in tables["jobs"] if (row["seed"], row["metric"]) == ("1", "global-accuracy"))
    assert (job["final"], job["best"], job["best-round"], job["rounds"]) == ("91.0", "93.0", "1", "2")
    shown = {f"figures/{path.name}" for path in (out / "figures").iterdir()}
    assert len(shown) == 2 * (1 + 4)
    assert all(f"({name})" in text for name in shown)
    assert "2 configurations on 1 splits" in capsys.readouterr().out


def test_runs_that_differ_in_what_is_no_setting_of_the_paper_are_told_apart(make_run, tmp_path):
    for nodes in (20, 50):
        make_run(f"c{nodes}", points((2, 0.7)), num_rounds=2, sample__min_nodes=nodes)
    for dealt in (5, 10):  # two jobs of a sweep over engine.clients
        make_run(f"d{dealt}", points((2, 0.7)), num_rounds=2, sample__min_nodes=2).note(clients=dealt)
    for name in ("plain", "cohort"):
        make_run(name, points((2, 0.7)), num_rounds=2, mix="d1", engine__name=name)
    make_run("again", points((2, 0.8)), num_rounds=2, mix="d1", engine__name="plain", run__callbacks="")
    (own,) = configurations(runs_in(tmp_path)).values()
    found = {one.label: [run.path.name for run in one.runs] for one in own}
    assert list(found) == [
        "HeteroFL d, cnn, engine.name=cohort",
        "HeteroFL d, cnn, engine.name=plain",
        *(f"HeteroFL e, cnn, clients={number}" for number in (10, 20, 5, 50)),
    ]
    assert len(found["HeteroFL d, cnn, engine.name=plain"]) == 1


def test_a_run_that_stopped_because_nothing_improved_counts(make_run, tmp_path):
    make_run("run", points((2, 0.5)), rounds=2, num_rounds=9, run__patience=1).note(finished="now")
    (own,) = configurations(runs_in(tmp_path)).values()
    assert [one.final.mean for one in reached(own)] == [50, 50]


def test_texts_are_judged_by_perplexity_though_they_have_an_accuracy_too(make_run, tmp_path, capsys):
    evaluated = {1: {"global-accuracy": 0.85, "global-perplexity": 9.0, "local-perplexity": 8.0}}
    make_run("run", evaluated | {2: {**evaluated[1], "global-perplexity": 9.5}}, num_rounds=2, data__name="wikitext2")
    assert command.main([str(tmp_path / "runs"), "--format", "csv"]) == 0
    found = {row["metric"]: row["best-mean"] for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert found == {"global-perplexity": "9.0", "local-perplexity": "8.0"}


def test_the_best_round_is_the_median_clients_and_its_value_the_mean_as_that_of_the_last(make_run, tmp_path):
    make_run("run", {1: {"local-perplexity": 30.0}, 2: {"local-perplexity": 20.0}}, num_rounds=2)
    (run,) = runs_in(tmp_path)
    medians = ({"local-perplexity": 9.0}, {"local-perplexity": 12.0})
    records = [replace(one, evaluate_medians=own) for one, own in zip(run.records, medians, strict=True)]
    found = configurations([replace(run, records=records)])
    (own,) = reached(found["mnist", "iid"])
    assert (own.final.mean, own.best.mean) == (20, 30)
    (job,) = csv.DictReader(jobs_csv(found).splitlines())
    assert (job["final"], job["best"], job["best-round"]) == ("20.0", "30.0", "1")


def test_a_run_without_its_history_or_without_evaluation_does_not_hide_the_others(make_run, tmp_path, capsys):
    lost = make_run("lost", rounds=2, num_rounds=2)
    lost.note(finished="now")
    (lost.path / "history.jsonl").unlink()
    for seed, loss in enumerate(("nan", "7.0")):
        make_run(f"text{seed}", {2: {"global-perplexity": float(loss)}}, num_rounds=2, seed=seed, data__split="natural")
    make_run("blind", {2: {}}, num_rounds=2, evaluate__every=0)
    assert command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "left out, unfinished: lost, 0 of 2 rounds" in capsys.readouterr().err
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "| HeteroFL e, cnn | global perplexity | 0, 1 | 2 | nan ± nan | nan ± nan |" in text
    assert "| HeteroFL e, cnn | 20 B | 2 | 400 B |" in text


def test_a_data_set_that_is_gone_leaves_out_the_multiplications_alone(make_run, tmp_path):
    make_run("run", points((2, 0.5)), num_rounds=2, data__name=str(tmp_path / "gone"))
    (own,) = configurations(runs_in(tmp_path)).values()
    assert axes_of(own) == ["rounds", "bytes", "seconds"]
    assert command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0


def test_time_and_energy_are_there_where_devices_were_simulated(make_run, tmp_path):
    folder = make_run("run", points((1, 0.4), (2, 0.9)), num_rounds=2)
    history = folder.path / "history.jsonl"
    lines = history.read_text(encoding="utf-8").replace('"joules": 0.0', '"joules": 700.0')
    history.write_text(lines.replace('"simulated_seconds": 0.0', '"simulated_seconds": 90.0'), encoding="utf-8")
    assert command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--target", "0.4"]) == 0
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "| seconds | simulated-seconds | joules |" in text
    assert "| 2.0 s | 1 min 30 s | 700 J |" in text
    assert "| 4.0 s | 3 min 0 s | 1.40 kJ |" in text
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 2 * 7


def test_long_names_leave_room_for_the_curves_and_for_one_another(make_run, tmp_path):
    for number in range(6):
        own = {"distill__models": "cnn,preresnet18,mlp", "distill__steps": number, "distill__weight": number / 2}
        make_run(f"r{number}", points((1, 0.3), (2, 0.8)), num_rounds=2, server__strategy="fedh2l", **own)
    (found,) = configurations(runs_in(tmp_path)).values()
    assert len(found[0].label) > 60
    assert to_svg_file(draw_curves(found, "global-accuracy", "rounds"), "test")  # a figure without room is a warning
    figure = draw_reached([own for own in reached(found) if own.metric == "global-accuracy"])
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 6
    assert all(below.y1 < above.y0 for above, below in pairwise(boxes))


def test_figures_whose_runs_are_gone_are_removed_and_without_a_finished_run_it_is_an_error(make_run, tmp_path, capsys):
    old = tmp_path / "out" / "figures" / "results-old.svg"
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
    (own,) = configurations(runs_in(tmp_path)).values()
    axes = draw_curves(own, "global-accuracy", "bytes").axes[0]
    assert axes.get_xscale() == "log"
    assert any("for nothing" in line.get_label() for line in axes.lines)
    assert draw_curves(own, "global-perplexity", "bytes") is None
