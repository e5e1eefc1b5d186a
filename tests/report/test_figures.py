import io
import math
from dataclasses import replace

import numpy as np
from PIL import Image

from heterofl_flwr.report.drawing import to_png
from heterofl_flwr.report.figures import draw_curves, draw_run

NAMES = ["learning-curves", "levels", "loss", "bytes"]


def figures(records, costs=None):
    return {drawing.name: drawing.figure for drawing in draw_run(records, costs.model() if costs else None)}


def test_figures_of_a_run_are_drawn_as_pngs(records, costs):
    drawn = figures(records, costs)
    assert list(drawn) == NAMES
    data = to_png(drawn["levels"], "title")
    assert data.startswith(b"\x89PNG")
    assert np.asarray(Image.open(io.BytesIO(data)).convert("L")).std() > 5


def test_bytes_lie_below_those_of_fedavg(records, costs):
    sent, full = figures(records, costs)["bytes"].axes[0].lines
    assert full.get_label() == "full-size FedAvg"
    assert sent.get_ydata()[-1] == sum(record.bytes_down + record.bytes_up for record in records)
    assert (full.get_ydata() > 0).all()


def test_curves_that_coincide_are_drawn_once():
    near, far = [0.2, 0.9, 0.95], [0.1, 0.5, 0.6]
    curves = {"global": ([1, 2, 3], near), "local": ([1, 2, 3], [0.2, 0.901, 0.951]), "worst": ([1, 2, 3], far)}
    figure = draw_curves(curves, "accuracy")
    assert [line.get_label() for line in figure.axes[0].lines] == ["global and local", "worst"]


def test_a_run_that_diverged_and_one_of_a_single_round_are_drawn(record, costs):
    values = (2.0, math.inf, math.nan, 1.0)
    records = [
        replace(record(number), evaluate={"global-perplexity": value}, train={"loss": value}, evaluate_by_level={})
        for number, value in enumerate(values, 1)
    ]
    assert to_png(figures(records, costs)["learning-curves"], "title")
    assert figures([record(2)], costs).keys() >= {"learning-curves", "bytes"}
