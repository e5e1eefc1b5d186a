import io
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from heterofl_flwr.report.drawing import COLOURS, light, to_png, to_svg
from heterofl_flwr.report.figures import draw_run

NAMES = ["learning-curves", "levels", "loss", "bytes", "for-bytes", "multiplications", "trained", "time"]


def figures(records, costs=None):
    return {drawing.name: drawing.figure for drawing in draw_run(records, costs.model() if costs else None)}


def test_every_figure_is_a_png_with_something_on_it(records, costs):
    drawn = figures(records, costs)
    assert list(drawn) == NAMES
    for figure in drawn.values():
        data = to_png(figure, dpi=60)
        assert data.startswith(b"\x89PNG")
        assert np.asarray(Image.open(io.BytesIO(data)).convert("L")).std() > 5


def test_the_curves_hold_the_records_values(records, costs):
    axes = figures(records, costs)["learning-curves"].axes[0]
    line = {own.get_label(): own for own in axes.lines}["global"]
    evaluated = [record for record in records if record.evaluate]
    assert line.get_xdata().tolist() == [record.server_round for record in evaluated]
    assert line.get_ydata().tolist() == [record.evaluate["global-accuracy"] for record in evaluated]
    assert [own.get_label() for own in axes.lines] == ["global", "local", "worst"]


def test_equal_curves_do_not_hide_one_another_and_end_below_a_line_at_100_percent(record):
    equal = {"global-accuracy": 1.0, "local-accuracy": 1.0, "worst-accuracy": 1.0}
    axes = figures([replace(record(number), evaluate=equal) for number in (1, 2, 3)])["learning-curves"].axes[0]
    widths = [curve.get_linewidth() for curve in axes.lines]  # the later ones lie above
    assert all(above < 0.6 * below for below, above in pairwise(widths))
    (line,) = (own for own in axes.collections if isinstance(own, LineCollection))
    assert line.get_segments()[0][:, 1].tolist() == [1, 1]
    assert axes.get_ylim()[1] > 1


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
    assert set(NAMES) - figures(records).keys() == {"multiplications", "trained"}
    bare = [replace(record, evaluate={}, evaluate_by_level={}, train={}, train_by_level={}) for record in records]
    assert list(figures(bare)) == ["bytes", "time"]
    assert figures([]) == {}


def test_a_run_that_diverged_and_one_of_a_single_round_are_drawn(record, costs):
    values = (2.0, math.inf, math.nan, 1.0)
    records = [
        replace(record(number), evaluate={"global-perplexity": value}, train={"loss": value}, evaluate_by_level={})
        for number, value in enumerate(values, 1)
    ]
    for figure in figures(records, costs).values():
        assert to_png(figure, dpi=40)
    assert figures([record(2)], costs).keys() >= {"learning-curves", "bytes", "trained"}


def test_losses_below_0_that_are_equal_have_an_axis(record):
    (axes,) = figures([replace(record(1), train={"loss": -1.0}, train_by_level={})])["loss"].axes
    assert axes.get_ylim() == pytest.approx((-1, -0.95))


def test_large_ranges_are_drawn_on_a_logarithmic_axis(record):
    records = [
        replace(record(number), evaluate={"global-perplexity": 30_000 / number**3}, evaluate_by_level={})
        for number in range(1, 9)
    ]
    assert figures(records)["learning-curves"].axes[0].get_yscale() == "log"


def test_an_svg_has_ids_of_its_own_and_the_pages_colours(records):
    figure = figures(records)["levels"]
    svg = to_svg(figure, "levels", 'a "label"')
    assert to_png(figure, dpi=60) != to_png(figure, dpi=60, title="Accuracy by level")
    assert svg.startswith("<svg viewBox=")
    assert 'aria-label="a &quot;label&quot;"' in svg
    assert "var(--blue)" in svg
    assert not any(light(name) in svg for name in COLOURS)
    assert "http" not in svg
    assert "font-family" not in svg
    assert "<style" not in svg
    assert all(part.startswith("levels-") for part in svg.split(' id="')[1:])


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
