"""Tables of a sweep: progress of jobs, and results over seeds."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from heterofl_flwr.app.sweep.job import BEGUN, DONE, ENDED, Job, read_score
from heterofl_flwr.common.errors import counted
from heterofl_flwr.core.formatting import duration, render
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.settings.method_name import run_title

HEADER = ("job", "time", "state", "unlike the published settings")


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


def list_results(jobs: Sequence[Job], rows: Sequence[Sequence[str]]) -> str:
    """Return the comparison table and remarks of ``heterofl report`` for the finished jobs, with means over seeds.

    Jobs whose overrides differ only in the seed share a table row. The row shows ``run.metric`` or, if that is empty,
    the headline metric. ``rows`` contains the overrides of each job. Without finished jobs, return ''.
    """
    from heterofl_flwr.report.compare import compare_runs  # loads matplotlib
    from heterofl_flwr.report.remarks import remarks

    everywhere = set(rows[0]).intersection(*rows)
    runs = defaultdict[str, dict[object, RunFolder]](dict)
    labels: set[tuple[str, str]] = set()
    for job, row in zip(jobs, rows, strict=True):
        if job.stage == DONE and (result := read_score(job)):
            texts = [text for text in row if not text.startswith("seed=")]
            differing = [text for text in texts if text not in everywhere]
            name = " ".join(differing or texts) or run_title(job.settings)
            runs[name][job.settings.seed] = RunFolder(job.path)
            labels.add((name, result.label))
    if not runs:
        return ""
    histories = {folder: folder.history() for seeds in runs.values() for folder in seeds.values()}
    heads, table = compare_runs(histories, runs)
    shown = [row for row in table if (row[0], row[2]) in labels]
    return "\n".join([render(heads, shown, "table"), *remarks(histories, runs, [row[2] for row in shown])])
