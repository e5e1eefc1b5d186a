"""What a job has to compute, counted from its settings; the paper's data sets need not be there for it."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import torch

from heterofl_flwr.app.cli.profile import printed
from heterofl_flwr.app.sweep.job import BEGUN, DONE, ENDED, Job
from heterofl_flwr.app.task import Task, load_data
from heterofl_flwr.core.formatting import duration, render
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.data.known import Facts, short_name
from heterofl_flwr.data.splits import by_owner, owner_column
from heterofl_flwr.grids.devices import PASSES
from heterofl_flwr.nn.models import PAPER
from heterofl_flwr.nn.nested import mean_passes
from heterofl_flwr.nn.profile import Profile, profile
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.settings.flat import from_flat, to_flat
from heterofl_flwr.settings.groups import DataSettings, Settings

PIECE = 64
"""Words of a text that go through the model together; a piece is to a text what an image is to other data."""

SIZES: Mapping[str, tuple[int, int]] = {
    "mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "wikitext2": (100 * math.ceil(20_886 / PIECE), 10 * math.ceil(24_556 / PIECE)),
}
"""Examples, or pieces, of train and test."""


@lru_cache(maxsize=8)
def sizes_of(data: DataSettings, clients: int) -> tuple[int, int]:
    """Return the sizes of train and test that clients share; other data than the paper's are loaded for it."""
    if (short := short_name(data.name)) in SIZES:
        return SIZES[short]
    dataset = load_data(data)
    splits = (dataset.train, dataset.test)
    numbers: Sequence[int] = [len(own) for own in splits]
    if owner_column(data.split) is not None:  # what belongs to other owners takes no part
        numbers = [sum(map(len, rows)) for rows in by_owner(dataset, clients)]
    train, test = (
        number * (math.ceil(own.inputs.shape[1] / PIECE) if own.reading else 1)
        for number, own in zip(numbers, splits, strict=True)
    )
    return train, test


class _Task(Task):
    """A data set and a model; the paper's data sets need not be there."""

    @cached_property
    def facts(self) -> Facts:
        """What the model's shape follows from."""
        setup = PAPER.get(short_name(self.settings.data.name))
        words = setup.options.get("vocabulary") if setup else None
        return Facts((PIECE,), int(str(words))) if words else super().facts

    def example(self) -> torch.Tensor:
        """Return a batch of one input, all zeros."""
        setup = PAPER.get(short_name(self.settings.data.name))
        return setup.example() if setup else torch.zeros_like(super().example())


def values_of(settings: Settings) -> int:
    """Return of how many values an example consists."""
    return _Task(settings).example().numel()


@lru_cache(maxsize=1024)  # as _profile is, whose key takes longer to find than what results do with it
def profile_at(settings: Settings, rate: float) -> Profile:
    """Return what one example costs in a rate's model."""
    return _profile(_model_at(settings, rate))


def _model_at(settings: Settings, rate: float) -> Settings:
    """Return settings that describe a rate's model, and nothing else: the key under which its cost is cached."""
    flat = to_flat(settings)
    own = {key: value for key, value in flat.items() if key.startswith(("data.", "model."))}
    if owner_column(settings.data.split) is None:  # else it says which column is no input
        del own["data.split"]
    return from_flat({**own, "mix": str(Mix((rate,), (1,)))})


@lru_cache(maxsize=1024)
def _profile(model: Settings) -> Profile:
    task = _Task(model)
    build, example = task.build, task.example()  # a user's module and data have values, so not on "meta"
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        module = build(model.mix.global_rate)
    return profile(module, example)


@dataclass(frozen=True, slots=True)
class JobCost:
    """What a job computes, in examples by rate."""

    trained: Mapping[float, float]  # examples that clients train on
    evaluated: Mapping[float, float]  # those that go through the model once: in evaluation, and for moments


def compute_cost(job: Job, done: int = 0) -> JobCost:
    """Return what a job computes after the rounds that are done."""
    settings, mix, every = job.settings, job.settings.mix, job.settings.evaluate.every
    train, test = sizes_of(settings.data, job.clients)
    sampled = max(math.ceil(Fraction(str(settings.sample.fraction_train)) * int(mix.taking_part * job.clients)), 1)
    sampled = settings.asynchronous.size or sampled
    in_all = (settings.num_rounds - done) * sampled * settings.train.epochs * (train // job.clients)
    trained: Counter[float] = Counter()
    for rate, share in zip(mix.rates, mix.shares, strict=True):
        passes = mean_passes(settings.train.distill, rate, mix.rates)
        trained.update({other: in_all * share * number for other, number in passes.items()})
    if not every:
        return JobCost(trained, {})
    times = math.ceil(settings.num_rounds / every) - done // every
    each = test + (train if settings.model.norm == "sbn" else 0)
    levels = {True: times, False: 0, "last": 1}[settings.evaluate.levels]
    central = settings.evaluate.central * (times + (not done)) * test
    evaluated = dict.fromkeys(mix.all_rates, float(levels * each)) | {mix.global_rate: float(times * each + central)}
    return JobCost(trained, evaluated)


def compute_macs(job: Job, cost: JobCost) -> float:
    """Return the multiplications (with addition); a backward pass counts as two forward passes."""
    macs = {rate: profile_at(job.settings, rate).macs for rate in job.settings.mix.all_rates}
    trained = (PASSES * macs[rate] * number for rate, number in cost.trained.items())
    return math.fsum([*trained, *(macs[rate] * number for rate, number in cost.evaluated.items())])


HEADER = ("job", "parameters", "MACs", "time", "state", "unlike the published settings")


def list_jobs(jobs: Sequence[Job]) -> str:
    """Return a table of jobs: what each costs, how far it is, and how long the rest takes, or all of it took.

    A round takes as long for each multiplication as the rounds before it with the same data did, in whichever job.
    """
    records = [RunFolder(job.path).history() if job.stage in (BEGUN, DONE) else [] for job in jobs]
    costs = [_estimate(job, len(own)) for job, own in zip(jobs, records, strict=True)]
    took = [math.fsum(record.seconds for record in own) for own in records]
    seconds, macs = defaultdict[str, float](float), defaultdict[str, float](float)
    for job, spent, (_, total, left) in zip(jobs, took, costs, strict=True):
        if spent and total > left:
            seconds[job.settings.data.name] += spent
            macs[job.settings.data.name] += total - left
    rows, expected = [], []
    for job, own, spent, (parameters, total, left) in zip(jobs, records, took, costs, strict=True):
        name, stage = job.settings.data.name, job.stage
        shown = spent if stage == DONE else left * seconds[name] / macs[name] if macs[name] else math.nan
        if stage not in ENDED:
            expected.append(shown)
        state = f"round {len(own)} of {job.settings.num_rounds}" if stage == BEGUN else stage
        numbers = printed(parameters), f"{total:.2e}", duration(shown)
        texts = (text.replace("nan s", "?").replace("nan", "?") for text in numbers)
        rows.append((job.path.name, *texts, state, job.describe_changes()))
    done, still = sum(job.stage == DONE for job in jobs), math.fsum(expected)
    time = (
        "the time of the others is known after a round" if math.isnan(still) else f"the others take {duration(still)}"
    )
    return f"{render(HEADER, rows, 'table')}\n\n{len(jobs)} jobs, {done} of them done; {time}"


def _estimate(job: Job, done: int) -> tuple[float, float, float]:
    """Return the mean parameters of a client, and the multiplications of all rounds and of those to come."""
    try:
        parameters = {rate: float(profile_at(job.settings, rate).parameters) for rate in job.settings.mix.rates}
        total, left = (compute_macs(job, compute_cost(job, rounds)) for rounds in (0, done))
        return job.settings.mix.mean(parameters), total, left if job.stage != DONE else 0.0
    except Exception:  # a user's own model raises what it likes; the job itself will say so
        return math.nan, math.nan, math.nan
