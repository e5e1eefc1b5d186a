import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from heterofl_flwr.report.drawing import COLOURS, to_png, to_svg
from heterofl_flwr.report.figures import draw_curves, draw_run

NAMES = ["learning-curves", "levels", "loss", "bytes", "for-bytes", "trained"]


def figures(records, costs=None):
    return {drawing.name: drawing.figure for drawing in draw_run(records, costs.model() if costs else None)}


def test_every_figure_is_a_png_with_something_on_it(records, costs):
    drawn = figures(records, costs)
    assert list(drawn) == NAMES
    for figure in drawn.values():
        data = to_png(figure, "title")
        assert data.startswith(b"\x89PNG")
        assert np.asarray(Image.open(io.BytesIO(data)).convert("L")).std() > 5


def test_the_curves_hold_the_records_values(records, costs):
    axes = figures(records, costs)["learning-curves"].axes[0]
    line = {own.get_label(): own for own in axes.lines}["global"]
    evaluated = [record for record in records if record.evaluate]
    assert line.get_xdata().tolist() == [record.server_round for record in evaluated]
    assert line.get_ydata().tolist() == [record.evaluate["global-accuracy"] for record in evaluated]
    assert [own.get_label() for own in axes.lines] == ["global", "local", "worst"]


def test_curves_that_coincide_are_one(record):
    values = {"global-accuracy": 0.97, "local-accuracy": 0.9701, "worst-accuracy": 0.8}
    axes = figures([replace(record(number), evaluate=values) for number in (1, 2, 3)])["learning-curves"].axes[0]
    assert [own.get_label() for own in axes.lines] == ["global, local", "worst"]


def test_the_axis_follows_what_comes_after_the_climb(record):
    reached = [0.1, 0.6, 0.95, 0.96, 0.97, 0.98, 0.98, 0.985]
    records = [replace(record(number), evaluate={"global-accuracy": own}) for number, own in enumerate(reached, 1)]
    low, high = figures(records)["learning-curves"].axes[0].get_ylim()
    assert 0.94 < low < 0.95
    assert 0.985 < high < 0.99


def test_bytes_lie_below_those_of_fedavg(records, costs):
    sent, full = figures(records, costs)["bytes"].axes[0].lines
    assert full.get_label() == "full-size FedAvg"
    assert sent.get_ydata()[-1] == sum(record.bytes_down + record.bytes_up for record in records)
    assert (full.get_ydata() > 0).all()


def test_shells_of_smaller_levels_are_trained_more_often(records, costs):
    widths = [bar.get_width() for bar in figures(records, costs)["trained"].axes[0].patches]
    assert len(widths) == 5
    assert widths == sorted(widths)


def test_without_costs_or_evaluation_there_are_fewer_figures(records):
    assert set(NAMES) - figures(records).keys() == {"trained"}
    bare = [replace(record, evaluate={}, evaluate_by_level={}, train={}, train_by_level={}) for record in records]
    assert list(figures(bare)) == ["bytes"]
    assert figures([]) == {}


def test_a_run_that_diverged_and_one_of_a_single_round_are_drawn(record, costs):
    values = (2.0, math.inf, math.nan, 1.0)
    records = [
        replace(record(number), evaluate={"global-perplexity": value}, train={"loss": value}, evaluate_by_level={})
        for number, value in enumerate(values, 1)
    ]
    for figure in figures(records, costs).values():
        assert to_png(figure, "title")
    assert figures([record(2)], costs).keys() >= {"learning-curves", "bytes", "trained"}


def test_losses_below_0_that_are_equal_have_an_axis(record):
    (axes,) = figures([replace(record(1), train={"loss": -1.0}, train_by_level={})])["loss"].axes
    assert axes.get_ylim() == pytest.approx((-1.02, -0.98))


def test_an_svg_follows_the_readers_mode_and_is_always_the_same(records):
    figure = figures(records)["levels"]
    svg = to_svg(figure, "levels")
    assert svg == to_svg(figures(records)["levels"], "levels")
    assert "prefers-color-scheme: dark" in svg
    _, drawn = svg.split("</style>", 1)
    assert "var(--blue)" in drawn
    assert not any(pair[0] in drawn for pair in COLOURS.values())


def test_names_of_any_length_are_shown_as_they_are():
    names = ("$net_{$", "preresnet18-later", "a_function_with_a_long_name", "mlp", "cnn")
    figure = draw_curves({name: ([1], [float(number)]) for number, name in enumerate(names)}, "loss")
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == r"\$net_{\$"  # no formula
    assert to_png(figure, "title")  # where a legend leaves no room for the curves, matplotlib warns


def test_figures_of_time_and_energy_are_drawn_where_devices_are_simulated(records, simulated):
    ours = {"for-time", "for-energy"}
    assert not ours & {drawing.name for drawing in draw_run(records, None)}
    drawn = {drawing.name: drawing for drawing in draw_run(simulated, None)}
    time, energy = drawn["for-time"].figure.axes[0], drawn["for-energy"].figure.axes[0]
    evaluated = [record for record in simulated if record.evaluate]
    line = {own.get_label(): own for own in time.lines}["global"]
    assert line.get_xdata().tolist() == pytest.approx([1.5 * record.server_round for record in evaluated])
    assert line.get_ydata().tolist() == [record.evaluate["global-accuracy"] for record in evaluated]
    assert time.get_xlabel() == "simulated minutes"
    assert energy.lines[0].get_xdata().tolist() == [1500.0 * record.server_round for record in evaluated]
    assert "estimate" in drawn["for-energy"].title
