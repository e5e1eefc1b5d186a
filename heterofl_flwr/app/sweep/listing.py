"""The table of a sweep's jobs: how far each is, and how long the rest takes."""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from heterofl_flwr.app.sweep.job import BEGUN, DONE, ENDED, Job
from heterofl_flwr.core.formatting import duration, render
from heterofl_flwr.runs.folder import RunFolder

HEADER = ("job", "time", "state", "unlike the published settings")


def list_jobs(jobs: Sequence[Job]) -> str:
    """Return a table of jobs: how long the rest of each takes, or all of it took, how far it is, and what it changes.

    A round takes as long as the job's own rounds before it did, or else as those of all jobs with the same data.
    """
    seconds, known, left, rows = [], defaultdict[str, list[float]](list), [], []
    for job in jobs:
        records = RunFolder(job.path).history() if job.stage in (BEGUN, DONE) else []
        seconds.append([record.seconds for record in records])
        known[job.settings.data.name] += seconds[-1]
    for job, own in zip(jobs, seconds, strict=True):
        rounds, stage, like = job.settings.num_rounds, job.stage, own or known[job.settings.data.name]
        rest = (rounds - len(own)) * fmean(like) if like else math.nan
        if stage not in ENDED:
            left.append(rest)
        time = duration(math.fsum(own) if stage == DONE else rest).replace("nan s", "?")
        state = f"round {len(own)} of {rounds}" if stage == BEGUN else stage
        rows.append((job.path.name, time, state, job.describe_changes()))
    done, still = sum(job.stage == DONE for job in jobs), math.fsum(left)
    said = (
        "the time of the others is known after a round" if math.isnan(still) else f"the others take {duration(still)}"
    )
    return f"{render(HEADER, rows, 'table')}\n\n{len(jobs)} jobs, {done} of them done; {said}"
