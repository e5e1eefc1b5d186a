"""What configurations reached and spent: over seeds as tables, and run by run as values."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.federation.evaluation import is_share
from heterofl_flwr.report.summary import marked
from heterofl_flwr.runs.costs import LevelCost
from heterofl_flwr.runs.metrics import SCOPES, Score, headline_kind, scores
from simulations.results.configurations import Configuration
from simulations.results.curves import AXES, axes_of, bounds, spent_until
from simulations.results.runs import Run, portable
from simulations.statistics import PERCENT, Summary, summarise
from simulations.tables import Table, show_summary, to_csv

NOTE = (
    "Final: after the last round. Best: in the best round by this metric; by the median client's, of perplexities and "
    "losses that clients report. Both are means over clients, accuracies in percent. Over several seeds: mean ± "
    "standard deviation, and from three seeds on the 95 % interval of the mean by the t distribution."
)
PARTIAL_NOTE = " With *: of a seed at least, fewer than half of the clients that were asked evaluated."
LEVELS_NOTE = (
    "Multiplications are those of a forward pass of one example; bytes those of the parameters in a message, one way. "
    "After the last round: mean ± standard deviation over the seeds that evaluated it, and the interval as above."
)
JOB = ("dataset", "split", "configuration", "metric")
MOMENTS = ("mean", "deviation", "low", "high")
RESULTS = (*JOB, "seeds", *(f"{when}-{moment}" for when in ("final", "best") for moment in MOMENTS))
JOBS = (*JOB, "seed", "rounds", "final", "best", "best-round", "seconds", "commit", "machine", "folder")


@dataclass(frozen=True, slots=True)
class Reached:
    """What the runs of a configuration reached by one metric. Shares are in percent."""

    label: str
    metric: str
    runs: tuple[tuple[Run, Score], ...]  # by seed
    final: Summary  # after the last round
    best: Summary  # in the best round

    @property
    def final_partial(self) -> bool:
        """Whether a final value comes from too few clients."""
        return any(score.partial for _, score in self.runs)

    @property
    def best_partial(self) -> bool:
        """Whether all values of a run come from too few clients, so that the last one stands for the best."""
        return any(score.best_round is None for _, score in self.runs)


def reached(configurations: Sequence[Configuration]) -> list[Reached]:
    """Return what each configuration reached by each metric of which it has values."""
    found = []
    for metric in metrics_of(configurations):
        for one in configurations:
            own = [(run, score) for run in one.runs for score in scores(run.records) if score.name == metric]
            if own:
                final, best = (
                    _summary(metric, values) for values in zip(*(_ends(run, score) for run, score in own), strict=True)
                )
                found.append(Reached(one.label, metric, tuple(own), final, best))
    return found


def metrics_of(configurations: Sequence[Configuration]) -> list[str]:
    """Return the metrics of which there are values: global, local and of the worst client."""
    records = [record for one in configurations for run in one.runs for record in run.records]
    kind = headline_kind(records)
    return [f"{scope}-{kind}" for scope in SCOPES if any(f"{scope}-{kind}" in record.evaluate for record in records)]


def _ends(run: Run, score: Score) -> tuple[float, float]:
    """Return the value after the last and in the best round, both means over clients, by whatever the round was chosen.

    A run whose values are all of too few clients has no other than its last.
    """
    found = (record.evaluate[score.name] for record in run.records if record.server_round == score.best_round)
    best = next(found, score.final)
    return _shown(score.name, score.final), _shown(score.name, best)


def _shown(metric: str, value: float) -> float:
    """Return a value as tables have it, shares in percent."""
    return 100 * value if is_share(metric) else value


def _summary(metric: str, values: Sequence[float]) -> Summary:
    """Return mean, deviation and interval of values as tables have them."""
    return summarise(values, PERCENT if is_share(metric) else bounds(metric))


def reached_table(configurations: Sequence[Configuration]) -> Table:
    """Return what each configuration reached, over seeds."""
    rows = []
    for own in reached(configurations):
        seeds, rounds = (", ".join(map(str, dict.fromkeys(texts))) for texts in zip(
            *((run.seed, run.rounds) for run, _ in own.runs), strict=True
        ))  # fmt: skip
        metric = own.metric.replace("-", " ")
        ends = marked(show_summary(own.final), own.final_partial), marked(show_summary(own.best), own.best_partial)
        rows.append((own.label, metric, seeds, rounds, *ends))
    header = ("configuration", "metric", "seeds", "rounds", "final", "best")
    note = NOTE + PARTIAL_NOTE * any("*" in cell for row in rows for cell in row[-2:])
    return Table("tab:reached", "Reached", header, tuple(rows), note)


@dataclass(frozen=True, slots=True)
class LevelReached:
    """What a level's own model reached by some metrics after the last round, over seeds. Shares are in percent."""

    label: str  # of the configuration
    level: str
    cost: LevelCost | None
    metrics: Mapping[str, Summary]
    seeds: tuple[int, ...]  # of the runs that evaluated it


def reached_by_level(configurations: Sequence[Configuration]) -> list[LevelReached]:
    """Return what each level's own model reached, where it was evaluated."""
    metrics, found = metrics_of(configurations), []
    for one in configurations:
        last = {run.seed: run.records[-1].evaluate_by_level for run in one.runs}
        known = (cost for run in reversed(one.runs) for cost in (run.costs.levels if run.costs else ()))
        costs = {cost.level: cost for cost in known}  # of the first run that has them
        for level in sorted({level for by_level in last.values() for level in by_level}, key=rate_of, reverse=True):
            by_seed = {seed: by_level.get(level, {}) for seed, by_level in last.items()}
            values = {m: [_shown(m, own[m]) for own in by_seed.values() if m in own] for m in metrics}
            if summaries := {metric: _summary(metric, own) for metric, own in values.items() if own}:
                seeds = tuple(seed for seed, own in by_seed.items() if own.keys() & summaries.keys())
                found.append(LevelReached(one.label, level, costs.get(level), summaries, seeds))
    return found


def levels_table(found: Sequence[LevelReached], metrics: Sequence[str]) -> Table | None:
    """Return what each level's own model costs and reached by some metrics; None where none was evaluated."""
    if not found:
        return None
    metrics, rows = [metric for metric in metrics if any(metric in own.metrics for own in found)], []
    for own in found:
        costs = (formatting.NOTHING,) * 3
        if cost := own.cost:
            costs = (f"{cost.parameters:,}", formatting.count(cost.macs), formatting.size(cost.bytes))
        values = (
            show_summary(own.metrics[metric]) if metric in own.metrics else formatting.NOTHING for metric in metrics
        )
        rows.append((own.label, own.level, ", ".join(map(str, own.seeds)), *costs, *values))
    header = (
        "configuration",
        "level",
        "seeds",
        "parameters",
        "multiplications",
        "bytes",
        *(m.replace("-", " ") for m in metrics),
    )
    return Table("tab:levels", "Each level's own model", header, tuple(rows), LEVELS_NOTE)


def spent_table(configurations: Sequence[Configuration]) -> Table:
    """Return what each configuration spent, in the mean over seeds."""
    axes, rows = axes_of(configurations), []
    for one in configurations:
        asked = sum(len(record.rates) for run in one.runs for record in run.records)
        sent = sum(AXES["bytes"].spent(run)[-1] for run in one.runs) / asked
        totals = (_mean(axis, [AXES[axis].spent(run)[-1] for run in one.runs]) for axis in axes)
        rows.append((one.label, formatting.size(sent), *totals))
    header = ("configuration", "bytes a client and round", *axes)
    return Table("tab:spent", "Spent", header, tuple(rows))


def target_table(configurations: Sequence[Configuration], metric: str, target: float) -> Table:
    """Return what each configuration had spent when it first reached a target: the mean over the seeds that did."""
    axes, rows = axes_of(configurations), []
    for one in configurations:
        spent = {axis: [spent_until(run, metric, target, axis) for run in one.runs] for axis in axes}
        found = {axis: [value for value in values if value is not None] for axis, values in spent.items()}
        cells = (_mean(axis, values) for axis, values in found.items())
        rows.append((one.label, f"{len(found['rounds'])} of {len(one.runs)}", *cells))
    title = f"Until {metric.replace('-', ' ')} of {formatting.score(metric, target)}"
    note = "At the first evaluation that reached it; the mean over the seeds that did."
    return Table(f"tab:{metric}-{target:g}", title, ("configuration", "seeds that did", *axes), tuple(rows), note)


def _mean(axis: str, values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return AXES[axis].write(summarise(known).mean) if known else formatting.NOTHING


Places = Mapping[tuple[str, str], Sequence[Configuration]]
"""Configurations by data and split."""


def results_csv(places: Places) -> str:
    """Return a row for each configuration and metric: mean, deviation and interval over seeds.

    Here and in the other values, what too few clients gave is left out.
    """
    return to_csv(RESULTS, [row for place, own in places.items() for row in _results(place, own)])


def _results(place: tuple[str, str], configurations: Sequence[Configuration]) -> Iterator[dict[str, object]]:
    for own in reached(configurations):
        row: dict[str, object] = dict(zip(JOB, (*place, own.label, own.metric), strict=True))
        row["seeds"] = " ".join(str(run.seed) for run, _ in own.runs)
        for when, summary, partial in (("final", own.final, own.final_partial), ("best", own.best, own.best_partial)):
            values = (summary.mean, summary.deviation, *(summary.interval or (None, None)))
            row |= {
                f"{when}-{name}": _rounded(None if partial else value)
                for name, value in zip(MOMENTS, values, strict=True)
            }
        yield row


def jobs_csv(places: Places) -> str:
    """Return a row for each run and metric."""
    rows = []
    for place, configurations in places.items():
        for own in reached(configurations):
            for run, score in own.runs:
                final, best = _ends(run, score)
                values = (
                    *place,
                    own.label,
                    own.metric,
                    run.seed,
                    run.rounds,
                    _rounded(None if score.partial else final),
                    _rounded(None if score.best_round is None else best),
                    score.best_round,
                )
                origin = (round(run.seconds, 1), run.commit, run.machine, portable(str(run.path)))
                rows.append(dict(zip(JOBS, (*values, *origin), strict=True)))
    return to_csv(JOBS, rows)


def curves_csv(places: Places) -> str:
    """Return a row for each run and evaluation, with what was spent by then."""
    metrics = tuple(dict.fromkeys(metric for own in places.values() for metric in metrics_of(own)))
    rows = (
        dict(zip(JOB[:3], (*place, one.label), strict=True)) | {"seed": run.seed} | values
        for place, own in places.items()
        for one in own
        for run in one.runs
        for values in _evaluations(run, metrics)
    )
    return to_csv((*JOB[:3], "seed", *AXES, *metrics), list(rows))


def _evaluations(run: Run, metrics: Sequence[str]) -> Iterator[dict[str, object]]:
    spent = zip(*(axis.spent(run) for axis in AXES.values()), strict=True)
    for record, so_far in zip(run.records, spent, strict=True):
        found = {metric: record.evaluate[metric] for metric in metrics if metric in record.comparable}
        if found:
            yield {name: f"{value:.10g}" for name, value in (*zip(AXES, so_far, strict=True), *found.items())}


def _rounded(value: float | None) -> object:
    return "" if value is None else round(value, 4)
