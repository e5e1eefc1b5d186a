import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.colors import to_rgb

from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.report import Recorder, RunFolder, write_report
from heterofl_flwr.report.drawing import to_png
from heterofl_flwr.report.figures import draw_curves, draw_run
from heterofl_flwr.runs.class_counts import ClassCounts, read_counts, write_counts
from tests.app.runs import run_app

VOID = {"meta", "link", "br", "img", "input", "hr"}
SECTIONS = ["figures", "levels", "metrics", "failures", "how-it-was-run", "settings"]
EVIL = "<script>alert(1)</script>'\"&"


class Page(HTMLParser):
    """Notes tags, attributes and text, of tags that must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.values: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.values += [(tag, name, value or "") for name, value in [("", ""), *attrs]]
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text = " ".join(f"{self.text} {data}".split())


@pytest.fixture(scope="module")
def run(tmp_path_factory, fake, costs):
    folder = RunFolder(tmp_path_factory.mktemp("html") / "run")
    settings = {"model": "cnn", "optim": {"lr": 0.1, "milestones": [60, 80]}, "note": EVIL}
    folder.start(settings, about={"title": f"A run {EVIL}", "device": "an abacus", "widths": [[64, 64], [8]]})
    folder.note(command=f"heterofl run {EVIL}")
    fake.run([Recorder(folder, every=12, costs=costs)], 1, 12)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(run):
    return Page(run.report.read_text(encoding="utf-8"))


def test_it_has_every_section_loads_nothing_and_runs_nothing(page, run):
    assert [value for tag, name, value in page.values if (tag, name) == ("section", "id")] == SECTIONS
    tags = [tag for tag, name, _ in page.values if not name]
    assert tags.count("img") == tags.count("figure") == tags.count("figcaption") == len(list(run.figures.iterdir()))
    assert "script" not in tags
    assert not [value for value in page.values if value[1].startswith("on")]
    text = re.sub(r"base64,[\w+/=]+", "", run.report.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//\w|@import", text)
    links = [value for _, name, value in page.values if name in ("src", "href", "xlink:href", "srcset", "action")]
    assert all(value.startswith(("#", "data:")) for value in links)
    policy = next(value for tag, name, value in page.values if (tag, name) == ("meta", "content") and "-src" in value)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_it_shows_what_was_run_and_what_came_of_it(page, run):
    accuracy = f"{100 * run.history()[-1].evaluate['global-accuracy']:.1f} %"
    said = (f"A run {EVIL}", f"heterofl run {EVIL}", "an abacus", "64, 64, 8", "optim.lr", "60, 80", accuracy)
    assert [expected for expected in (*said, "CUDA out of memory") if expected not in page.text] == []


def test_the_folder_alone_is_enough_and_gives_the_same_page(run, tmp_path):
    before = run.report.read_bytes()
    other = tmp_path / "elsewhere" / "run"
    other.mkdir(parents=True)
    for name in ("settings.json", "history.jsonl"):
        (other / name).write_bytes((run.path / name).read_bytes())
    assert write_report(str(other)).read_bytes() == before
    figures = sorted((other / "figures").iterdir())
    assert [path.name for path in figures] == sorted(path.name for path in run.figures.iterdir())
    assert all(path.suffix == ".png" and path.stat().st_size > 5000 for path in figures)


def test_a_run_without_rounds_has_a_report(folder, tmp_path):
    folder.start({"seed": 0})
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "There is nothing to draw yet." in page.text
    with pytest.raises(ConfigError, match="is no folder of a run"):
        write_report(RunFolder(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def figures(records, costs=None):
    return {
        drawing.name: drawing.figure for drawing in draw_run(records, costs.model() if costs else None, ClassCounts())
    }


def test_metrics_with_names_of_the_app_have_curves(records):
    """Also with one that matplotlib could not draw as a formula, which ended a run at its report."""
    f1 = r"f1 $\frac{$"
    for number, record in enumerate(records):
        record.train[f1] = number / 10
        if record.evaluate:
            record.evaluate |= {f1: number / 5, "latency": 3.0}
    drawn = [figure for name, figure in figures(records).items() if "metric-" in name]
    axes = {figure.axes[0].get_ylabel(): figure.axes[0] for figure in drawn}
    assert axes.keys() == {f1, "latency"}
    assert all(to_png(figure, f1) for figure in drawn)
    evaluated, trained = axes[f1].lines
    assert list(evaluated.get_ydata()) == [record.evaluate[f1] for record in records if record.evaluate]
    assert list(trained.get_ydata()) == [number / 10 for number in range(len(records))]


def test_captions_say_how_many_metrics_of_the_app_have_no_figure(record):
    drawn = [
        {drawing.caption for drawing in draw_run([replace(record(1), train=values)], None, ClassCounts())}
        for values in ({f"f{number}": 1.0 for number in range(size)} for size in (12, 13))
    ]
    assert [any("The first 12 of 13 metrics." in caption for caption in captions) for captions in drawn] == [
        False,
        True,
    ]


def captions(*arguments):
    return {drawing.name: drawing.caption for drawing in draw_run(*arguments)}


def test_a_caption_names_fedavg_only_if_it_is_drawn(records, costs):
    found = [captions(records, known, ClassCounts())["bytes"] for known in (None, costs.model())]
    assert ["FedAvg" in caption for caption in found] == [False, True]


@pytest.mark.parametrize(("row", "remark"), [((0, 1), ""), ((0, 0), " No test examples: two.")])
def test_a_caption_names_classes_without_test_examples(records, row, remark):
    counts = ClassCounts(names=("one", "two"), confusion=((3, 1), row))
    assert captions(records, None, counts)["confusion"].endswith(f"of the full model.{remark}")


def test_bytes_lie_below_those_of_fedavg(records, costs):
    sent, full = figures(records, costs)["bytes"].axes[0].lines
    assert full.get_label() == "full-size FedAvg"
    assert sent.get_ydata()[-1] == sum(record.bytes_down + record.bytes_up for record in records)
    assert (full.get_ydata() > 0).all()


def test_trainings_of_clients_are_stacked_by_level(record):
    records = [replace(record(1), rates={4: 1.0, 9: 0.5}), replace(record(2), rates={4: 0.5})]
    large, small = figures(records)["participation"].axes[0].patches
    assert (large.get_label(), list(large.get_data().values)) == ("a", [1, 0, 0])
    assert (small.get_label(), list(small.get_data().values)) == ("b", [2, 0, 1])
    assert list(small.get_data().baseline) == [1, 0, 0]
    assert list(small.get_data().edges) == [3.5, 4.5, 8.5, 9.5]  # each above its client's number


def test_curves_that_coincide_are_drawn_once():
    near, far = [0.2, 0.9, 0.95], [0.1, 0.5, 0.6]
    curves = {"global": ([1, 2, 3], near), "local": ([1, 2, 3], [0.2, 0.901, 0.951]), "worst": ([1, 2, 3], far)}
    figure = draw_curves(curves, "accuracy")
    assert [line.get_label() for line in figure.axes[0].lines] == ["global and local", "worst"]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["global and local", "worst"]


@pytest.mark.parametrize(("climb", "shown"), [([0.1, 0.3], True), ([0.1] * 3, False)], ids=["short", "long"])
def test_the_axis_follows_what_comes_after_the_climb_of_a_long_run(climb, shown):
    values = climb + [0.96, 0.97] * (1 if shown else 5)
    low, _ = draw_curves({"global": (list(range(len(values))), values)}, "accuracy").axes[0].get_ylim()
    assert (low < 0.1) == shown


@pytest.mark.parametrize(("name", "values"), [("loss", [2.3, 2.0, 1.9] + [math.nan] * 9), ("accuracy", [50.0, 97.0])])
def test_values_of_a_run_that_diverged_early_and_accuracies_in_percent_are_in_the_figure(name, values):
    low, high = draw_curves({"": (list(range(len(values))), values)}, name).axes[0].get_ylim()
    assert low < min(values) < max(values) < high


def test_bands_are_shaded_and_on_the_axis_without_what_cannot_be_drawn():
    curves = {"a": ([1, 2, 3], [0.5, 0.6, 0.7]), "b": ([1, 2, 3], [0.5, 0.6, 0.7])}
    axes = draw_curves(curves, "loss", bands={"a": ([0.1, 0.2, math.nan], [0.9, 2.0, math.inf])}).axes[0]
    assert [line.get_label() for line in axes.lines] == ["a", "b"]
    (shade,) = axes.collections
    assert shade.get_facecolor()[0, :3] == pytest.approx(to_rgb(axes.lines[0].get_color()))
    assert [shade.get_datalim(axes.transData).y0, shade.get_datalim(axes.transData).y1] == [0.1, 2.0]
    assert axes.get_ylim()[0] < 0.1 < 2.0 < axes.get_ylim()[1]


def test_long_names_that_differ_in_the_middle_differ_in_the_legend():
    names = [f"{'x' * 40} lr={rate} {'y' * 40}" for rate in (0.1, 0.2)]
    figure = draw_curves({name: ([1, 2], [1.0, 2.0]) for name in names}, "loss", bands={})
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [text.replace("\n", " ") for text in texts] == names
    assert max(len(line) for text in texts for line in text.splitlines()) <= 48


def test_a_run_that_diverged_and_one_of_a_single_round_are_drawn(record, costs):
    values = (2.0, math.inf, math.nan, 1.0, 1.7e308, -1.7e308)
    records = [
        replace(record(number), evaluate={"global-perplexity": value}, train={"loss": value}, evaluate_by_level={})
        for number, value in enumerate(values, 1)
    ]
    assert to_png(figures(records, costs)["learning-curves"], "title")
    assert figures([record(2)], costs).keys() >= {"learning-curves", "bytes"}


def test_settings_that_were_changed_are_apart_from_those_that_were_not(folder):
    """The digits' default of num-rounds is a change on MNIST, and MNIST's own of train.epochs is none."""
    folder.start({"data.name": "mnist", "num-rounds": 5, "train.epochs": 5, "of-my-own": 1})
    write_report(folder)
    parts = folder.report.read_text(encoding="utf-8").split('id="settings"')[1].split("<details>")
    names = ("num-rounds", "of-my-own", "train.epochs")
    assert [[name for name in names if name in part] for part in parts] == [[*names[:2]], [names[2]]]


def with_classes(folder, fake, number, **counts):
    """Return the page of a run with class counts, and the names of its figures."""
    folder.start({})
    fake.run([Recorder(folder, every=12)], 1, 1)
    write_counts(folder, names=[f"class {index}" for index in range(number)], **counts)
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    return page, {path.stem for path in folder.figures.iterdir()}


def test_classes_of_clients_and_confusions_are_figures(folder, fake):
    confusion = [[9, 1, 0], [0, 10, 0], [5, 0, 5]]
    counts = {"clients": [[4, 0, 3], [0, 7, 0]], "confusion": confusion, "server_round": 1}
    page, names = with_classes(folder, fake, 3, **counts)
    assert "Confusion matrix, round 1" in [value for tag, name, value in page.values if (tag, name) == ("img", "alt")]
    assert {"classes", "confusion"} <= names
    drawn = {drawing.name: drawing.figure for drawing in draw_run([], None, read_counts(folder))}
    clients = drawn["classes"].axes[0].images[0].get_array()
    assert clients.filled(0).tolist() == [[4, 0], [0, 7], [3, 0]]
    axes = drawn["confusion"].axes[0]
    assert {(*text.get_position(), text.get_text()) for text in axes.texts} == {
        *((0, 0, "90"), (1, 0, "10"), (1, 1, "100"), (0, 2, "50"), (2, 2, "50"))
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 0", "class 1", "class 2"]


def test_many_classes_have_a_table_of_those_most_confused(folder, fake):
    confusion = [[8 * (row == column) for column in range(30)] for row in range(30)]
    confusion[4][7], confusion[9][2] = 2, 8
    page, names = with_classes(folder, fake, 30, confusion=confusion, server_round=1)
    assert "classes" not in names  # a deployment's clients tell nobody their numbers of examples
    assert "confusion" not in names
    assert "class 9 class 2 8 50.0 % class 4 class 7 2 20.0 %" in page.text


def test_damaged_counts_are_named(folder, fake):
    with_classes(folder, fake, 2, clients=[[1, 2]])
    (folder.path / "classes.json").write_text('{"names": ["x", "y"], "clients": [[1, 2], [3]]}')
    with pytest.raises(ConfigError, match=r"(?s)classes\.json cannot be read.*remove it"):
        write_report(folder)


def test_the_app_counts_classes_of_its_simulated_clients_and_predictions(tmp_path):
    config = {"num-rounds": 1, "train.epochs": 1, "train.batch-size": 50, "model.hidden": "8,16"}
    config |= {"data.split": "non-iid-2", "mix": "a1", "run.dir": str(tmp_path / "run")}
    run_app(config, 5)
    folder = RunFolder(tmp_path / "run")
    counts, workload = read_counts(folder), load_workload(config)
    parts, targets = workload.partitions(5).train, workload.dataset.train.targets
    assert counts.clients == [torch.bincount(targets[rows], minlength=10).tolist() for rows in parts]
    assert [sum(row) for row in counts.confusion] == torch.bincount(workload.dataset.test.targets).tolist()
    correct = sum(row[number] for number, row in enumerate(counts.confusion))
    assert correct / len(workload.dataset.test) == folder.history()[-1].evaluate["global-accuracy"]
    assert counts.server_round == 1
    assert {"classes", "confusion"} <= {path.stem for path in folder.figures.iterdir()}
