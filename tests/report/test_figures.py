import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from heterofl_flwr.report.drawing import COLOURS, series, to_png, to_svg, with_variables
from heterofl_flwr.report.figures import draw_run

NAMES = [
    "learning-curves",
    "levels",
    "loss",
    "bytes",
    "for-bytes",
    "multiplications",
    "trained",
    "time",
]


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


def test_bytes_lie_below_those_of_fedavg(records, costs):
    full, sent = figures(records, costs)["bytes"].axes[0].lines
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


def test_a_run_that_diverged_is_drawn(record, costs):
    values = (2.0, math.inf, math.nan, 1.0)
    records = [
        replace(record(number), evaluate={"global-perplexity": value}, train={"loss": value}, evaluate_by_level={})
        for number, value in enumerate(values, 1)
    ]
    for figure in figures(records, costs).values():
        assert to_png(figure, dpi=40)


def test_large_ranges_are_drawn_on_a_logarithmic_axis(record):
    records = [
        replace(record(number), evaluate={"global-perplexity": 30_000 / number**3}, evaluate_by_level={})
        for number in range(1, 9)
    ]
    assert figures(records)["learning-curves"].axes[0].get_yscale() == "log"


def test_a_single_round_is_drawn(record, costs):
    assert figures([record(2)], costs).keys() >= {"learning-curves", "bytes", "trained"}


def test_an_svg_has_ids_of_its_own_and_the_pages_colours(records):
    svg = to_svg(figures(records)["levels"], "levels", 'a "label"')
    assert svg.startswith("<svg viewBox=")
    assert 'aria-label="a &quot;label&quot;"' in svg
    assert "var(--blue)" in svg
    assert "http" not in svg
    assert "font-family" not in svg
    assert "<style" not in svg
    assert all(part.startswith("levels-") for part in svg.split(' id="')[1:])


@pytest.mark.parametrize("mode", [0, 1])
def test_colours_are_told_apart(mode):
    assert len({pair[mode] for pair in COLOURS.values()}) == len(COLOURS)
    assert len({series(number) for number in range(18)}) == 18


def test_every_colour_has_a_variable():
    assert with_variables(" ".join(pair[0] for pair in COLOURS.values())).count("var(--") == len(COLOURS)


def test_families_have_a_curve_each_however_long_their_names(record):
    names = ("preresnet18-later", "a_function_with_a_long_name", "mlp", "cnn")
    found = {f"{name}/global-accuracy": 0.5 + 0.1 * number for number, name in enumerate(names)}
    (drawn,) = (one for one in draw_run([replace(record(1), evaluate=found)], None) if one.name == "families")
    assert [line.get_label() for line in drawn.figure.axes[0].get_lines()] == list(names)
    assert to_png(drawn.figure)  # where a legend leaves no room for the curves, matplotlib warns
