"""Several runs in one table and on one page."""

import csv
import math
from statistics import fmean, stdev

import numpy as np
import pytest
from scipy.special import stdtrit

from heterofl_flwr.app.main import main
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.report import RunFolder, compare
from heterofl_flwr.report.compare import paired_difference
from heterofl_flwr.runs.costs import LevelCost, ModelCosts
from tests.runs.conftest import make_record


def compare_runs(folders):
    return compare.compare_runs({folder: folder.history() for folder in folders}, compare.group_runs(folders))


def run(path, mix, seed, accuracy, **settings):
    folder = RunFolder(path)
    folder.start({"mix": mix, "seed": seed, "data": {"name": "digits"}, **settings})
    for number in (1, 2):
        record = make_record(number)
        record.evaluate = {"global-accuracy": accuracy - 0.1 * (2 - number)}
        record.evaluate_medians, record.partial = {}, ()
        folder.append(record)
    return folder


@pytest.fixture
def folders(tmp_path):
    values = {"a1": (0.5, 0.6, 0.7), "e1": (0.4, 0.45, 0.65)}
    return [
        run(tmp_path / f"{mix}-{seed}", mix, seed, accuracy)
        for mix, accuracies in values.items()
        for seed, accuracy in enumerate(accuracies)
    ]


def test_runs_are_rows_of_the_settings_that_differ(folders):
    heads, rows = compare_runs(folders)
    assert [row[:4] for row in rows] == [
        ("mix=a1", "3", "global-accuracy", "60.0 % ± 10.0 %"),
        ("mix=e1", "3", "global-accuracy", "50.0 % ± 13.2 %"),
    ]
    differences = [-0.1, -0.15, -0.05]
    half = stdtrit(2, 0.975) * stdev(differences) / 3**0.5
    low, high = fmean(differences) - half, fmean(differences) + half
    assert rows[1][-1] == f"-10.0 [{100 * low:+.1f}, {100 * high:+.1f}] points"
    assert len(heads) == len(rows[0])
    assert paired_difference("loss", {0: 1.0, 1: 2.0}, {1: 1.5}) == "-0.5"
    assert paired_difference("local-accuracy", {0: 0.5}, {0: 0.75}) == "+25.0 points"
    assert paired_difference("local-accuracy", dict.fromkeys(range(3), math.nan), dict.fromkeys(range(3), 0.5)) == "-"


@pytest.mark.parametrize(
    ("settings", "notes", "rows"),
    [
        (
            (
                {},
                {"train.lr": 0.2, "sample.wait": 9.0},
                {"train.lr": 0.2, "run.log": "json"},  # these two change no result
                {"server.slice-rule": "rolling", "data.split": "non-iid-2"},
            ),
            {},
            [
                ("HeteroFL", "1"),
                ("HeteroFL: train.lr=0.2", "2"),
                ("FedRolex: data.split=non-iid-2 server.slice-rule=rolling", "1"),
            ],
        ),
        # A deployment records the number at its end, or never.
        (({}, {}), {"clients": 10}, [("engine.clients=10", "1"), ("engine.clients=", "1")]),
        # Equal runs are named by their title.
        (({}, {}), {"title": "HeteroFL on digits, a1"}, [("HeteroFL on digits, a1", "2")]),
        # A folder of an earlier version has the old name of a setting, one that is gone, and none that came later.
        (
            ({"server.slice-rule": "prefix", "server.growth": 0}, {"server.choose": "prefix", "train.factor": 0.1}),
            {},
            [("all", "2")],
        ),
        # A mix of an app may be another thing than levels.
        (({"mix": "half"}, {"mix": "full"}), {}, [("mix=half", "1"), ("mix=full", "1")]),
    ],
)
def test_rows_name_the_method_and_what_is_no_default(tmp_path, settings, notes, rows):
    """``notes`` are of the first run."""
    folders = [
        run(tmp_path / str(seed), seed=seed, accuracy=0.5, **{"mix": "a1", **own}) for seed, own in enumerate(settings)
    ]
    folders[0].note(**notes)
    assert [row[:2] for row in compare_runs(folders)[1]] == rows


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ([{"lr": 0.1, "seed": 1}], ["another app: lr=0.1", "HeteroFL: mix=a1"]),
        ([{"mix": "a1", "lr": 0.1}, {"mix": "a1"}], ["another app: lr=0.1", "another app", "HeteroFL"]),
    ],
)
def test_runs_of_another_app_have_no_settings_but_their_own(tmp_path, settings, rows):
    folders = []
    for number, own in enumerate(settings):
        folders.append(RunFolder(tmp_path / str(number)))
        folders[-1].start(own)
        folders[-1].append(make_record(1))
    folders.append(run(tmp_path / "ours", "a1", seed=0, accuracy=0.5))
    assert list(compare.group_runs(folders)) == rows


def test_curves_are_means_over_seeds_and_as_many_as_can_be_told_apart(folders, tmp_path, monkeypatch):
    drawn, shaded = [], []

    def draw(curves, _metric, _label, bands):
        drawn.append(curves)
        shaded.append(bands)

    monkeypatch.setattr(compare, "draw_curves", draw)
    compare.write_comparison(folders, tmp_path / "page.html", ())
    rounds, bytes_sent, _ = drawn
    assert rounds == {"mix=a1": ([1, 2], pytest.approx([0.5, 0.6])), "mix=e1": ([1, 2], pytest.approx([0.4, 0.5]))}
    assert shaded[0]["mix=a1"] == tuple(map(pytest.approx, ([0.4, 0.5], [0.6, 0.7])))
    sent = [[own.bytes_down + own.bytes_up for own in folder.history()] for folder in folders[:3]]
    one, two = map(fmean, zip(*sent, strict=True))
    assert bytes_sent["mix=a1"][0] == pytest.approx([one, one + two])
    many = [run(tmp_path / str(rate), f"{rate}x1", 0, 0.5) for rate in np.linspace(0.1, 1, 20).round(2)]
    compare.write_comparison(many, tmp_path / "page.html", ())
    assert len(drawn[3]) == 18


def test_final_and_best_are_of_one_statistic(tmp_path):
    """The median of the clients' losses, also where the mean is far away, and the mean of their accuracies."""
    folder = RunFolder(tmp_path)
    folder.start({"mix": "a1", "seed": 0, "data": {"name": "digits"}})
    record = make_record(1)
    record.evaluate, record.partial = {"local-loss": 9.0, "local-accuracy": 0.5}, ()
    record.evaluate_medians = {"local-loss": 1.0, "local-accuracy": 0.6}
    folder.append(record)
    record = make_record(2)  # of too few clients
    record.evaluate, record.evaluate_medians, record.partial = {"local-accuracy": 0.25}, {}, ("local-accuracy",)
    folder.append(record)
    assert [row[2:5] for row in compare_runs([folder])[1]] == [
        ("local-loss (median)", "1", "1"),
        ("local-accuracy", "25.0 % *", "50.0 %"),
    ]
    histories, rows = {folder: folder.history()}, compare.group_runs([folder])
    (row,) = compare.compare_metrics(histories, rows, ["local-accuracy", "local-loss"])[1]
    assert row[2::2][:2] == ("25.0 % *", "9")


def test_accuracies_in_percent_are_compared_in_their_own_unit(tmp_path):
    folders = [run(tmp_path / f"{mix}-{seed}", mix, seed, 90 + seed / 2) for mix in ("a1", "b1") for seed in (0, 1)]
    _, (first, second) = compare_runs(folders)
    assert (first[3], second[-1]) == ("90.25 ± 0.3536", "0")
    chance = run(tmp_path / "chance", "c1", 0, 1)  # of a hundred classes
    (row,) = (row for row in compare_runs([*folders, chance])[1] if row[0] == "mix=c1")
    assert row[3:5] == ("1", "1")


def test_a_mean_says_that_seeds_lack_its_metric_and_that_runs_are_not_finished(folders, tmp_path, capsys, caplog):
    for folder, (rounds, finished) in zip(folders, ((9, "now"), (9, None), (9, None)), strict=False):
        folder.note(num_rounds=rounds, finished=finished)
    record = make_record(3)
    record.evaluate, record.evaluate_medians, record.partial = {"f1": 0.5}, {}, ()
    folders[0].append(record)
    folders[2].append(record)
    page, paths = tmp_path / "page.html", [str(folder.path) for folder in folders]
    assert main(["report", *paths, "--out", str(page), "--metric", "f1", "--metric", "global-accuracy"]) == 0
    assert [row[3] for row in compare_runs(folders)[1] if row[2] == "f1"] == ["0.5 ± 0 (2 of 3 seeds)", "-"]
    printed = capsys.readouterr().out
    assert "0.5 ± 0 (2 of 3 seeds)" in printed
    assert "60.0 % ± 10.0 %   " in printed
    lines = [f"{paths[run]} is not finished: its values are of {run + 1} of 9 rounds" for run in (1, 2)]
    lines.append("runs ended in different rounds (mix=a1: 3, mix=e1: 2): their values are not of one round")
    assert caplog.messages == lines
    assert all(line in page.read_text() for line in lines)


def test_runs_that_ended_in_different_rounds_are_named(folders, tmp_path, caplog):
    """Rows of a user's app have no number of rounds, so nothing else said that two rounds are compared with three."""
    folders[1].append(make_record(3))
    first, other = "mix=a1: 2-3", "mix=e1: 2"
    compare.write_comparison(folders, tmp_path / "page.html", ())
    line = f"runs ended in different rounds ({first}, {other}): their values are not of one round"
    assert caplog.messages == [line]
    assert line in (tmp_path / "page.html").read_text()
    caplog.clear()
    compare.write_comparison([folders[0], *folders[2:]], tmp_path / "page.html", ())
    assert not caplog.messages
    longer = run(tmp_path / "longer", "a1", 0, 0.5, **{"num-rounds": 3})
    longer.append(make_record(3))
    compare.write_comparison([folders[0], longer], tmp_path / "page.html", ())  # its row's name says so
    assert not caplog.messages
    longer.note(num_rounds=9, finished=None, diverged=True)  # as a sweep does
    compare.write_comparison([folders[0], longer], tmp_path / "page.html", ())
    assert caplog.messages == [f"{longer.path} diverged: its values are of 3 of 9 rounds"]


def test_runs_without_an_evaluation_have_no_curves(tmp_path):
    folders = [run(tmp_path / str(seed), "a1", seed, 0.5) for seed in (0, 1)]
    for folder in folders:
        folder.rewind(0)
        record = make_record(1)
        record.evaluate = {}
        folder.append(record)
    compare.write_comparison(folders, tmp_path / "page.html", ())
    assert "There is nothing to draw yet." in (tmp_path / "page.html").read_text()


def test_values_of_levels_from_too_few_clients_have_a_star(tmp_path):
    folder = run(tmp_path / "run", "a1", 0, 0.5)
    record = make_record(3)
    record.evaluate_by_level, record.evaluate_asked, record.evaluate_answers = {"a": {"f1": 0.5}}, 5, 1
    record.evaluate, record.partial = {"f1": 0.25, "server-f1": 0.75}, ("f1",)
    folder.append(record)
    histories, rows = {folder: folder.history()}, compare.group_runs([folder])
    names = ["a/f1", "f1", "server-f1", "b/global-accuracy"]
    (row,) = compare.compare_metrics(histories, rows, names)[1]
    assert [cell.endswith(" *") for cell in row[2:10:2]] == [True, True, False, False]


def test_runs_that_diverged_are_compared(tmp_path):
    """Their deviation, or the mean of their differences, ended the command."""
    folders = [run(tmp_path / f"{mix}-{seed}", mix, seed, 0.5) for mix in ("a1", "b1") for seed in (0, 1, 2)]
    for folder, loss in zip(folders, (1.0, math.inf, 1.0, math.inf, 1.0, math.nan), strict=True):
        record = make_record(3)
        record.evaluate, record.evaluate_medians = {"global-loss": loss}, {}
        folder.append(record)
    first, second = (row for row in compare_runs(folders)[1] if row[2] == "global-loss")
    assert (first[3], second[3], second[-1]) == ("inf ± nan", "nan ± nan", "nan [nan, nan]")


def test_the_price_of_a_mix_is_of_all_seeds(tmp_path):
    folders = []
    for seed, rate in enumerate((1.0, 0.5)):
        folder = RunFolder(tmp_path / str(seed))
        folder.start({"mix": "a1-b1", "seed": seed, "data": {"name": "digits"}})
        record = make_record(1)
        record.rates, record.unsent = {0: rate, 1: 0.5}, (1,)  # which costs nothing
        folder.append(record)
        folder.write_costs(ModelCosts(1.0, (LevelCost("a", 1.0, 1, 4, 2), LevelCost("b", 0.5, 1, 1, 1))))
        folders.append(folder)
    heads, rows = compare_runs(folders)
    # Each seed drew one client, of the larger level and of the smaller one: 3 bytes and 5 multiplications, against
    # those of half a client of the larger and one of the smaller level, twice.
    assert {row[heads.index("price")] for row in rows} == {f"{1 / 1.5:.2f} / {3 / 4:.2f} / {5 / 6:.2f}"}
    places = [compare._places(folder, folder.history(), "global-accuracy")["MACs"] for folder in folders]
    assert [of_run[1][0] for of_run in places] == [4, 1]
    kept = RunFolder(tmp_path / "kept")
    kept.start({"mix": "a1-b1", "data": {"name": "digits"}, "server": {"shared": "linear.*"}})
    kept.append(folders[0].history()[0])
    kept.write_costs(folders[0].costs())
    assert {row[heads.index("price")] for row in compare_runs([kept])[1]} == {""}


def test_the_same_run_twice_is_refused(folders):
    with pytest.raises(ConfigError, match="equal settings and seed"):
        compare_runs([folders[0], RunFolder(folders[0].path)])


def test_equal_runs_without_a_seed_need_one(tmp_path):
    """Those of a user's app that names no seed; to leave one out was no help."""
    folders = [RunFolder(tmp_path / name) for name in "ab"]
    for folder in folders:
        folder.start({"lr": 0.1})
    with pytest.raises(ConfigError, match=r"equal settings and seed: give RunFolder\.start a seed"):
        compare_runs(folders)


def test_a_folder_named_before_a_pattern_that_has_it_is_the_baseline(folders, tmp_path, capsys):
    paths = [str(folder.path) for folder in folders]
    texts = []
    for order in (paths[-1:] + paths[:-1], paths[-1:] + paths, paths):
        assert main(["report", *order, "--out", str(tmp_path / "page.html"), "--format", "csv"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_any_metric_of_the_histories_is_a_column(folders, tmp_path, capsys):
    for number, folder in enumerate(folders):
        record = make_record(3)
        record.evaluate, record.train, record.stages = {"f1": number / 10}, {"loss": 2.0}, {"damping": 1.0}
        folder.append(record)
    page = tmp_path / "page.html"
    paths = [str(folder.path) for folder in folders]
    named = [word for name in ("f1", "train/loss", "stages/damping") for word in ("--metric", name)]
    options = [*named, "--format", "csv", "--out", str(page)]
    assert main(["report", *paths, *options]) == 0
    printed = capsys.readouterr()
    heads, first, second = csv.reader(printed.out.splitlines())  # nothing but the table, so that it can be piped
    assert printed.err == f"\ncomparison: {page}\n"
    assert heads[:6] == ["settings", "seeds", "f1", "against the first row", "train/loss", "against the first row"]
    assert first[:7] == ["mix=a1", "3", "0.1 ± 0.1", "", "2 ± 0", "", "1 ± 0"]
    assert second[:6] == ["mix=e1", "3", "0.4 ± 0.1", "+0.3 [+0.3, +0.3]", "2 ± 0", "0 [0, 0]"]
    assert "train/loss" in page.read_text()
    assert page.read_text().count("<figure>") == 2


def test_an_unknown_metric_is_one_error_with_the_known_ones(folders, capsys):
    paths = [str(folder.path) for folder in folders]
    assert main(["report", *paths, "--metric", "f2", "--metric", "global-accuracy"]) != 0
    error = capsys.readouterr().err
    assert "no run has a metric f2; expected one of" in error
    assert {"global-accuracy", "train/loss", "a/global-accuracy"} <= set(
        error.replace("\n", " ").split("expected one of ")[1].replace(",", "").split()
    )
    assert main(["report", paths[0], "--metric", "f1", "--format", "latex"]) != 0
    assert "only a comparison has --metric, --format: found 1 run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "metric", "remarks"),
    [("non-iid-2", "local-accuracy", 1), ("iid", "local-accuracy", 0), ("non-iid-2", "global-accuracy", 0)],
)
def test_local_accuracies_with_different_masks_are_remarked_on(tmp_path, caplog, split, metric, remarks):
    folders = []
    for number, fill in enumerate(("zero", "none", "none")):
        options = {"data": {"name": "digits", "split": split}, "train.mask-fill": fill}
        folders.append(run(tmp_path / str(number), "a1", number, 0.5, **options))
        record = make_record(3)
        record.evaluate = {"global-accuracy": 0.5, "local-accuracy": 0.5}
        folders[-1].append(record)
    compare.write_comparison(folders, tmp_path / "page.html", [metric])
    assert len(caplog.messages) == remarks
    assert all("train.mask-fill: none, zero" in text for text in caplog.messages)
