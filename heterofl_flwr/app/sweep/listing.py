"""Tables of a sweep: progress of jobs, and results over seeds."""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from statistics import fmean

from heterofl_flwr.app.sweep.job import BEGUN, DONE, ENDED, Job, read_score
from heterofl_flwr.common.errors import counted
from heterofl_flwr.core.formatting import duration, render, score
from heterofl_flwr.report.summary import marked, price_text
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.metrics import check_known, deviation, final_values, mean
from heterofl_flwr.runs.scores import Score
from heterofl_flwr.settings.method_name import run_title

HEADER = ("job", "time", "state", "unlike the published settings")
RESULTS = ("settings", "seeds", "final metric", "mean", "deviation", "least", "most", "mean of best", "price")


def list_jobs(jobs: Sequence[Job]) -> str:
    """Return a table of jobs: name, time, stage and changed settings.

    The time of an unfinished job is the estimated remaining time.
    """
    seconds, by_data, to_come, rows = [], defaultdict[str, list[float]](list), [], []
    stages = [job.stage for job in jobs]
    for job, stage in zip(jobs, stages, strict=True):
        records = RunFolder(job.path).history() if stage in (BEGUN, *ENDED) else []
        seconds.append([record.seconds for record in records])
        by_data[job.settings.data.name] += seconds[-1]
    for job, stage, rounds_done in zip(jobs, stages, seconds, strict=True):
        rounds, like = job.settings.num_rounds, rounds_done or by_data[job.settings.data.name]
        rest = (rounds - len(rounds_done)) * fmean(like) if like else math.nan
        if stage not in ENDED:
            to_come.append(rest)
        time = duration(math.fsum(rounds_done) if stage in ENDED else rest).replace("nan s", "?")
        state = f"round {len(rounds_done)} of {rounds}" if stage == BEGUN else stage
        rows.append((job.path.name, time, state, job.describe_changes()))
    done, still = stages.count(DONE), math.fsum(to_come)
    forecast = (
        "the time of the others is known after a round" if math.isnan(still) else f"the others take {duration(still)}"
    )
    return f"{render(HEADER, rows, 'table')}\n\n{counted(len(jobs), 'job')}, {done} done; {forecast}"


def list_results(jobs: Sequence[Job], rows: Sequence[Sequence[str]], metrics: Sequence[str] = ()) -> str:
    """Return a table of results of finished jobs: mean, deviation, minimum and maximum over seeds.

    ``rows`` has the settings of each job as texts, and ``metrics`` names further columns. The column "price" has
    the costs divided by the total costs of separate federations, one federation for each level.
    """
    everywhere = set(rows[0]).intersection(*rows)
    by_name = defaultdict[tuple[str, str], list[Score]](list)
    done = defaultdict[str, list[Job]](list)
    for job, row in zip(jobs, rows, strict=True):
        if job.stage == DONE and (result := read_score(job)):
            texts = [text for text in row if not text.startswith("seed=")]
            differing = [text for text in texts if text not in everywhere]
            name = " ".join(differing or texts) or run_title(job.settings)
            by_name[name, result.label].append(result)
            done[name].append(job)
    columns = {name: [final_values(RunFolder(job.path).history()) for job in done[name]] for name in done if metrics}
    if columns:
        check_known(metrics, chain.from_iterable(columns.values()))
    prices, lines = {name: _price(finished) for name, finished in done.items()}, []
    for (name, label), seeds in by_name.items():
        finals = [result.final for result in seeds]
        bests = [result.best for result in seeds if result.best is not None]
        values = mean(finals), deviation(finals), min(finals), max(finals), mean(bests)
        more = [score(column, mean([run[column] for run in columns[name] if column in run])) for column in metrics]
        final, *texts = [score(seeds[0].name, value) for value in values]
        final = marked(final, any(result.partial for result in seeds))
        lines.append((name, str(len(seeds)), label, final, *texts, *more, prices[name]))
    return render((*RESULTS[:-1], *metrics, RESULTS[-1]), lines, "table") if lines else ""


def _price(jobs: Sequence[Job]) -> str:
    folders, settings = [RunFolder(job.path) for job in jobs], jobs[0].settings
    records = [record for folder in folders for record in folder.history()]
    return price_text(settings.mix, records, folders[0].costs(), settings.train.distill)
