"""Comparison of several runs: one table and one page, with means over seeds and paired differences."""

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

from matplotlib.ticker import FuncFormatter

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import to_json, write_atomic
from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.nn.nested import InnerWidths
from heterofl_flwr.report.drawing import to_png
from heterofl_flwr.report.figures import Drawing, draw_curves
from heterofl_flwr.report.page import render_page
from heterofl_flwr.report.summary import Cells, price_text
from heterofl_flwr.runs.costs import bytes_sent, count_macs
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.metrics import headline, points, scores
from heterofl_flwr.settings.flat import current_names, flatten, from_flat, to_flat

UNCOMPARED = ("seed", "run.dir", "run.resume", "data.root", "engine.window", "sample.min-nodes")
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t distribution, from one degree of freedom on."""
LEAST_SEEDS = 3
NORMAL_QUANTILE = 2.228  # of ten degrees of freedom: wider than needed beyond

TEXTS = {
    "round": "{} of each run.",
    "bytes": "{} of each run over what its clients received and sent.",
    "MACs": "{} of each run over the multiplications of all its trainings, of one example each.",
}

HEADS = ("settings", "seeds", "metric", "final", "best", "bytes", "price", "against the first row")


def compare_runs(folders: Sequence[RunFolder]) -> Cells:
    """Return the table of runs: a row for each combination of settings and metric, with means over seeds."""
    rows, table = _rows(folders), []
    names = dict.fromkeys(score.name for folder in folders for score in scores(folder.history()))
    for metric in names:
        finals = {
            row: {seed: score for seed, run in runs.items() if (score := _final(run.history(), metric)) is not None}
            for row, runs in rows.items()
        }
        reference = next(iter(finals.values()))
        for row, runs in rows.items():
            values = list(finals[row].values())
            bests = [s.best for run in runs.values() for s in scores(run.history()) if s.name == metric]
            compared = [best for best in bests if best is not None]
            sent = fmean(sum(bytes_sent(run.history())) for run in runs.values())
            best = formatting.score(metric, fmean(compared) if compared else None)
            difference = "" if finals[row] is reference else paired_difference(metric, reference, finals[row])
            cells = row, str(len(runs)), metric, _mean(metric, values), best, formatting.size(sent)
            table.append((*cells, _price(next(iter(runs.values()))), difference))
    return HEADS, table


def paired_difference(metric: str, reference: Mapping[Any, float], second: Mapping[Any, float]) -> str:
    """Return the mean difference over common seeds as text; from three seeds on with its 95 % t interval."""
    differences = [second[seed] - reference[seed] for seed in reference if seed in second]
    if not differences:
        return formatting.NOTHING
    unit = " points" if formatting.score(metric, 0.0).endswith("%") else ""
    mean = formatting.score(metric, fmean(differences)).removesuffix(" %")
    if len(differences) < LEAST_SEEDS:
        return f"{mean}{unit}"
    freedom = len(differences) - 1
    quantile = QUANTILES[freedom - 1] if freedom <= len(QUANTILES) else NORMAL_QUANTILE
    half = quantile * stdev(differences) / len(differences) ** 0.5
    low, high = (formatting.score(metric, fmean(differences) + side * half).removesuffix(" %") for side in (-1, 1))
    return f"{mean} [{low}, {high}]{unit}"


def write_comparison(folders: Sequence[RunFolder], path: Path) -> Cells:
    """Write the page that compares runs; return its table."""
    table = compare_runs(folders)
    figures = [(drawing, b64encode(to_png(drawing.figure, drawing.title)).decode()) for drawing in _draw(folders)]
    note = (
        "Means and deviations over seeds; differences of equal seeds, from three on with 95 % intervals. The price is "
        "client-rounds, bytes and multiplications, as fractions of one federation for each level of the mix."
    )
    page = render_page(
        title="Comparison of runs",
        status=", ".join(folder.path.name for folder in folders),
        lines=[],
        figures=figures,
        tables=[("Runs", table, note, ())],
    )
    write_atomic(path, page.encode())
    return table


def _rows(folders: Sequence[RunFolder]) -> dict[str, dict[object, RunFolder]]:
    """Return the runs by the settings that differ, and by seed; settings that earlier versions lack are the default."""
    defaults = to_flat(from_flat({}))
    settings = [{**defaults, **current_names(flatten(folder.settings()))} for folder in folders]
    keys = dict.fromkeys(key for values in settings for key in values if key not in UNCOMPARED)
    differing = [key for key in keys if len({to_json(values.get(key)) for values in settings}) > 1]
    rows: dict[str, dict[object, RunFolder]] = {}
    for folder, values in zip(folders, settings, strict=True):
        row, seed = " ".join(f"{key}={values.get(key, '')}" for key in differing) or "all", values.get("seed")
        if seed in rows.setdefault(row, {}):
            raise ConfigError(f"{rows[row][seed].path} and {folder.path} have equal settings and seed: leave one out")
        rows[row][seed] = folder
    return rows


def _final(records: Sequence[RoundRecord], metric: str) -> float | None:
    return next((score.final for score in scores(records) if score.name == metric), None)


def _mean(metric: str, values: Sequence[float]) -> str:
    mean = formatting.score(metric, fmean(values) if values else None)
    return f"{mean} ± {formatting.score(metric, stdev(values))}" if len(values) > 1 else mean


def _price(folder: RunFolder) -> str:
    """Return the price of a run whose settings name a mix."""
    mix, widths = _mix(folder)
    return price_text(mix, folder.history(), folder.costs(), widths)


def _mix(folder: RunFolder) -> tuple[Mix, InnerWidths]:
    """Return the mix of a run, and which inner widths its clients train."""
    settings = flatten(folder.settings())
    return Mix.parse(str(settings.get("mix", "a"))), cast("InnerWidths", settings.get("train.distill", "none"))


def _draw(folders: Sequence[RunFolder]) -> Iterator[Drawing]:
    """Yield the headline metric of each run over rounds, bytes and multiplications."""
    curves: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {"round": {}, "bytes": {}, "MACs": {}}
    metric = next(filter(None, (headline(folder.history()) for folder in folders)), "")
    names = [folder.path.resolve().name for folder in folders]
    parts = [re.split("[-_]", name) for name in names]
    common = set(parts[0]).intersection(*parts)
    labels = ["-".join(part for part in of_name if part not in common) for of_name in parts]
    labels = labels if len(set(labels)) == len(names) else names
    for folder, name in zip(folders, labels, strict=True):
        records, costs = folder.history(), folder.costs()
        values = [record.evaluate.get(metric) for record in records]
        curves["round"][name] = points([record.server_round for record in records], values)
        curves["bytes"][name] = points(list(accumulate(bytes_sent(records))), values)
        mix, widths = _mix(folder)
        if (
            costs
            and {*mix.rates, *(rate for record in records for rate in record.rates.values())} <= costs.by_rate.keys()
        ):
            by_rate = {rate: cost.macs for rate, cost in costs.by_rate.items()}
            macs = [count_macs(mix, record.rates.values(), by_rate, widths) for record in records]
            curves["MACs"][name] = points(list(accumulate(macs)), values)
    units = "round", "bytes sent", "multiplications"
    forms = None, formatting.size, formatting.count
    for number, (unit, lines) in enumerate(curves.items()):
        if figure := draw_curves(lines, metric, units[number]):
            if form := forms[number]:
                figure.axes[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _, form=form: form(value)))
            yield Drawing(unit.lower(), f"{metric} over {unit}", TEXTS[unit].format(metric), figure)
