"""Comparison of several runs as a table and a page."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from heterofl_flwr.common.errors import ConfigError, counted
from heterofl_flwr.common.files import to_json, write_text
from heterofl_flwr.core import formatting
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.report.drawing import to_png
from heterofl_flwr.report.figures import Band, Drawing, Points, draw_curves
from heterofl_flwr.report.page import render_page
from heterofl_flwr.report.remarks import Histories, Rows, remarks
from heterofl_flwr.report.summary import Cells, marked, price_text
from heterofl_flwr.runs.costs import bytes_sent, count_macs, read_mix
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.metrics import check_known, deviation, final_values, mean, partial_names
from heterofl_flwr.runs.scores import headline, scores
from heterofl_flwr.settings.method_name import method_name
from heterofl_flwr.settings.renamed import current_names
from heterofl_flwr.settings.validate import (
    DEFAULTS,
    INCIDENTAL,
    SPECS,
    flatten,
    from_flat,
    to_flat,
    usual_values,
)

log = logging.getLogger(__name__)

QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t distribution with 1 to 10 degrees of freedom; above 10, the last value is used."""
LEAST_SEEDS = 3

AXES: Mapping[str, tuple[str, Callable[[float], str] | None, str]] = {
    "round": ("round", None, "{}"),
    "bytes": ("bytes sent", formatting.size, "{} over what clients received and sent"),
    "MACs": ("multiplications", formatting.count, "{} over the multiplications of all trainings, of one example each"),
}
"""Label, number format and caption of each figure, by the quantity on its horizontal axis."""

Places = Mapping[int, tuple[float, float]]
"""Points of a run's curve by round: place on the horizontal axis, and value."""

MOST_CURVES = 18
"""Largest number of curves in a figure; more would look alike."""

SEEDS = "; means over seeds, shaded from the lowest seed to the highest."

CLIENTS = "engine.clients"
"""Key of the number of clients. It is a setting of sweeps, but not of runs."""

DATA = "data.name"
"""Key of a setting that all runs of this package's app have, and probably no other app's."""

HEADS = ("settings", "seeds", "metric", "final", "best", "bytes", "price", "against the first row")


def compare_runs(histories: Histories, rows: Rows) -> Cells:
    """Return a table of means over seeds, with a row for each combination of a metric and a set of settings."""
    costs, table = {row: _costs(runs, histories) for row, runs in rows.items()}, []
    scored = {folder: {score.label: score for score in scores(history)} for folder, history in histories.items()}
    names = {label: score.name for by_label in scored.values() for label, score in by_label.items()}
    finals = {folder: {label: score.final for label, score in by_label.items()} for folder, by_label in scored.items()}
    for label, name in names.items():
        every = [by_label[label] for by_label in scored.values() if label in by_label]
        metric = formatting.score_name(name, (value for score in every for value in (score.final, score.best)))
        means = _means(metric, label, rows, finals)
        for row, runs in rows.items():
            of_row = [scored[run][label] for run in runs.values() if label in scored[run]]
            best = formatting.score(metric, mean([score.best for score in of_row if score.best is not None]))
            final, difference = means[row]
            final = marked(final, any(score.partial for score in of_row))
            table.append((row, str(len(runs)), label, final, best, *costs[row], difference))
    return HEADS, table


def compare_metrics(histories: Histories, rows: Rows, metrics: Sequence[str]) -> Cells:
    """Return a table with a row for each set of settings.

    A row has, for each of ``metrics``, the mean over seeds and the difference from the first row.
    """
    finals = {folder: final_values(history) for folder, history in histories.items()}
    check_known(metrics, finals.values())
    shown = [formatting.score_name(name, (values.get(name) for values in finals.values())) for name in metrics]
    means = [_means(metric, name, rows, finals) for metric, name in zip(shown, metrics, strict=True)]
    table = []
    for row, runs in rows.items():
        partial = set().union(*(partial_names(histories[run]) for run in runs.values()))
        cells: list[str] = []
        for name, by_row in zip(metrics, means, strict=True):
            final, difference = by_row[row]
            cells += marked(final, name in partial), difference
        table.append((row, str(len(runs)), *cells, *_costs(runs, histories)))
    columns = [head for name in metrics for head in (name, HEADS[-1])]
    return (*HEADS[:2], *columns, "bytes", "price"), table


def paired_difference(metric: str, reference: Mapping[Any, float], second: Mapping[Any, float]) -> str:
    """Return the mean of ``second - reference`` over common seeds as text, with a 95 % t interval.

    With fewer than three common seeds, the text has no interval.
    """
    differences = [second[seed] - reference[seed] for seed in reference if seed in second]
    centre, spread = mean(differences), deviation(differences)
    if centre is None:
        return formatting.NOTHING
    unit, text = " points" if formatting.score(metric, 0.0).endswith("%") else "", _signed(metric, centre)
    if text == formatting.NOTHING:  # of NaN
        return text
    if spread is None or len(differences) < LEAST_SEEDS:
        return f"{text}{unit}"
    quantile = QUANTILES[min(len(differences) - 1, len(QUANTILES)) - 1]
    half = quantile * spread / len(differences) ** 0.5
    low, high = (_signed(metric, centre + side * half) for side in (-1, 1))
    return f"{text} [{low}, {high}]{unit}"


def _signed(metric: str, value: float) -> str:
    text = formatting.score(metric, value).removesuffix(" %")
    return f"+{text}" if value > 0 else text


def write_comparison(folders: Sequence[RunFolder], path: Path, metrics: Sequence[str]) -> Cells:
    """Write the page that compares runs; return its table.

    If ``metrics`` is empty, the table has all metrics.
    """
    histories = {folder: folder.history() for folder in folders}  # read each file once
    rows = group_runs(list(histories))
    table = compare_metrics(histories, rows, metrics) if metrics else compare_runs(histories, rows)
    lines = remarks(histories, rows, metrics or [row[2] for row in table[1]])
    for text in lines:
        log.warning("%s", text)
    note = (
        "Means and deviations over seeds; differences of equal seeds, from three on with 95 % intervals. The price is "
        "client-rounds, bytes and multiplications, as fractions of one federation for each level of the mix. Where "
        "clients keep layers, global accuracy is the mean over their own models. A star: too few clients evaluated, so "
        "the value is never the best."
    )
    page = render_page(
        title="Comparison of runs",
        status=", ".join(folder.path.name for folder in folders),
        lines=lines,
        figures=[(drawing, to_png(drawing.figure, drawing.title)) for drawing in _draw(histories, rows)],
        tables=[("Runs", table, note, ())],
    )
    write_text(path, page)
    return table


def group_runs(folders: Sequence[RunFolder]) -> Rows:
    """Return the runs as ``{key: {seed: run}}``; raise ``ConfigError`` if two runs have equal settings and seed.

    The key is a text. It lists the settings that differ between runs, except those other than the mix that have the
    default for the run's data set, split, model and fidelity; runs of other apps have no defaults. If methods differ,
    the method comes first, alone if no setting is listed. If all runs have one method, and no setting would be listed,
    the differing settings that all runs have are. If there are none, the key is the first run's title, or ``all``.
    """
    stored = [current_names(flatten(folder.settings())) for folder in folders]
    defaults = to_flat(from_flat({}))  # folders of earlier versions lack settings
    settings = [{**defaults, **values} if DATA in values else values for values in stored]
    for folder, values in zip(folders, settings, strict=True):
        if clients := folder.about().get("clients"):
            values[CLIENTS] = clients
    keys = dict.fromkeys(key for values in settings for key in values if key not in ("seed", *INCIDENTAL))
    differing = [key for key in keys if len({to_json(values.get(key)) for values in settings}) > 1]
    common = [key for key in differing if key == CLIENTS or all(key in values for values in settings)]
    methods = list(map(_method, settings))
    several = len(set(methods)) > 1
    rows: Rows = {}
    title = str(folders[0].about().get("title") or "all")
    for folder, method, values in zip(folders, methods, settings, strict=True):
        usual = usual_values(values) if DATA in values else {}
        usual.pop("mix", None)
        unusual = [key for key in differing if values.get(key) != usual.get(key)]
        row = " ".join(f"{key}={values.get(key, '')}" for key in unusual or (() if several else common))
        row, seed = ": ".join(filter(None, (method, row))) if several else row or title, values.get("seed")
        if seed in rows.setdefault(row, {}):
            remedy = "leave one out" if "seed" in values else "give RunFolder.start a seed for each run"
            raise ConfigError(f"{rows[row][seed].path} and {folder.path} have equal settings and seed: {remedy}")
        rows[row][seed] = folder
    return rows


def _method(values: Mapping[str, object]) -> str:
    if DATA not in values:
        return "another app"
    try:
        return method_name(from_flat({key: value for key, value in values.items() if key in SPECS}))
    except ConfigError:  # the settings of another version
        return "unknown method"


def _means(
    metric: str, key: str, rows: Rows, finals: Mapping[RunFolder, Mapping[str, float]]
) -> dict[str, tuple[str, str]]:
    """Return two texts for each row: the mean over seeds, and the difference from the first row."""
    means, reference = {}, None
    for row, runs in rows.items():
        by_seed = {seed: finals[run][key] for seed, run in runs.items() if key in finals[run]}
        values = list(by_seed.values())
        final = formatting.score(metric, mean(values))
        spread = f" ± {formatting.score(metric, deviation(values))}" if len(values) > 1 else ""
        spread += f" ({len(values)} of {counted(len(runs), 'seed')})" if 0 < len(values) < len(runs) else ""
        means[row] = final + spread, "" if reference is None else paired_difference(metric, reference, by_seed)
        reference = by_seed if reference is None else reference
    return means


def _costs(runs: Mapping[object, RunFolder], histories: Histories) -> tuple[str, str]:
    """Return two texts: the mean of the bytes that the runs sent, and the price of the mix (``price_text``).

    The price is '' if clients keep layers, because the costs of models have no bytes of the other layers alone.
    """
    folders = list(runs.values())
    settings = folders[0].settings()
    mix, widths = read_mix(settings)
    sent = fmean(sum(bytes_sent(histories[folder])) for folder in folders)
    records = [record for folder in folders for record in histories[folder]]
    keeps_layers = flatten(settings).get("server.shared", DEFAULTS["server.shared"]) != DEFAULTS["server.shared"]
    price = "" if keeps_layers else price_text(mix, records, folders[0].costs(), widths)
    return formatting.size(sent), price


def _draw(histories: Histories, rows: Rows) -> Iterator[Drawing]:
    metric = next(filter(None, map(headline, histories.values())), "")
    curves: dict[str, dict[str, Points]] = {unit: {} for unit in AXES}
    bands: dict[str, dict[str, Band]] = {unit: {} for unit in AXES}
    for name, runs in islice(zip(_short_names(rows), rows.values(), strict=True), MOST_CURVES):
        seeds = [_places(folder, histories[folder], metric) for folder in runs.values()]
        for unit in AXES:
            curves[unit][name], bands[unit][name] = _over_seeds([places.get(unit, {}) for places in seeds])
    left_out = f" The first {MOST_CURVES} of {len(rows)} rows." if len(rows) > MOST_CURVES else ""
    for unit, (label, form, caption) in AXES.items():
        if figure := draw_curves(curves[unit], metric, label, bands[unit]):
            if form:
                figure.axes[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _, form=form: form(value)))
            yield Drawing(unit.lower(), f"{metric} over {unit}", caption.format(metric) + SEEDS + left_out, figure)


def _places(folder: RunFolder, records: Sequence[RoundRecord], metric: str) -> dict[str, Places]:
    """Return the points of a run's curve for each key of ``AXES``, without ``MACs`` if a rate's cost is unknown."""
    costs, rates = folder.costs(), [record.received_rates for record in records]
    rounds = [record.server_round for record in records]
    spent: dict[str, Iterable[float]] = {"round": rounds, "bytes": accumulate(bytes_sent(records))}
    mix, widths = read_mix(folder.settings())
    if costs and {*mix.rates}.union(*rates) <= costs.by_rate.keys():
        by_rate = {rate: cost.macs for rate, cost in costs.by_rate.items()}
        spent["MACs"] = accumulate(count_macs(mix, of_round, by_rate, widths) for of_round in rates)
    return {
        unit: {
            record.server_round: (place, record.evaluate[metric])
            for record, place in zip(records, places, strict=True)
            if metric in record.evaluate
        }
        for unit, places in spent.items()
    }


def _over_seeds(seeds: Sequence[Places]) -> tuple[Points, Band]:
    """Return the mean of the seeds' curves, and the lowest and highest values.

    Both have one point for each round that all seeds have.
    """
    rounds = [number for number in seeds[0] if all(number in places for places in seeds)]
    by_round = np.array([[places[number] for places in seeds] for number in rounds]).reshape(-1, len(seeds), 2)
    places, values = by_round[..., 0], by_round[..., 1]
    return (places.mean(1).tolist(), values.mean(1).tolist()), (values.min(1).tolist(), values.max(1).tolist())


def _short_names(rows: Rows) -> list[str]:
    """Return a short name for each key of ``rows``: the key without those words that all keys contain.

    In a short name, ``data.split=iid`` becomes ``split=iid``. If no word of a key is left, its short name is the key
    itself. If two short names would be equal, return all keys unchanged.
    """
    words = [row.split() for row in rows]
    common = set(words[0]).intersection(*words)
    names = [
        " ".join(re.sub(r"^[\w-]+\.(?=[\w.-]+=)", "", word) for word in of_row if word not in common) or row
        for row, of_row in zip(rows, words, strict=True)
    ]
    return names if len({*names}) == len(names) else list(rows)
