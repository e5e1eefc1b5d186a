"""What a job has to compute, counted from its settings; the paper's data sets need not be there for it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from timeit import Timer

import torch

from heterofl_flwr.app.cli.profile import printed
from heterofl_flwr.app.task import Task, load_data
from heterofl_flwr.core.formatting import duration, render
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.data import Reading, Split
from heterofl_flwr.data.known import Facts, short_name
from heterofl_flwr.data.splits import by_owner, owner_column
from heterofl_flwr.grids.devices import PASSES
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.nn.models import PAPER
from heterofl_flwr.nn.nested import mean_passes
from heterofl_flwr.nn.profile import Profile, profile
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.settings.flat import from_flat, to_flat
from heterofl_flwr.settings.groups import DataSettings, Settings
from heterofl_flwr.training import TrainOptions, evaluate, resolve_device, train
from simulations.program import cores
from simulations.sweep.job import BEGUN, DONE, ENDED, Job

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
    at_once: int  # clients that can train together

    def total(self, train: Callable[[float], float], evaluate: Callable[[float], float]) -> float:
        """Return the sum over all examples, from what one costs at a rate."""
        training = (number * train(rate) for rate, number in self.trained.items())
        return math.fsum([*training, *(number * evaluate(rate) for rate, number in self.evaluated.items())])


def compute_cost(job: Job, done: int = 0) -> JobCost:
    """Return what a job computes after the rounds that are done, of which there are fewer than all."""
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
        return JobCost(trained, {}, sampled)
    times = math.ceil(settings.num_rounds / every) - done // every
    each = test + (train if settings.model.norm == "sbn" else 0)
    levels = {True: times, False: 0, "last": 1}[settings.evaluate.levels]
    central = settings.evaluate.central * (times + (not done)) * test
    evaluated = dict.fromkeys(mix.all_rates, float(levels * each)) | {mix.global_rate: float(times * each + central)}
    return JobCost(trained, evaluated, sampled)


def compute_macs(job: Job, cost: JobCost) -> float:
    """Return the multiplications (with addition); a backward pass counts as two forward passes."""
    macs = {rate: profile_at(job.settings, rate).macs for rate in job.settings.mix.all_rates}
    return cost.total(lambda rate: PASSES * macs[rate], lambda rate: macs[rate])


def estimate_seconds(job: Job, cost: JobCost) -> float:
    """Return how long training and evaluation would take, undisturbed and with the engine ``plain``."""
    batch, device = job.settings.train.batch_size, job.settings.engine.device
    each = {rate: measure(_model_at(job.settings, rate), batch, device) for rate in job.settings.mix.all_rates}
    total = cost.total(lambda rate: each[rate][0], lambda rate: each[rate][1])
    if job.engine.grid == "local" or resolve_device(device).type != "cpu":  # a GPU is no faster with two clients
        return total
    share = job.engine.share
    return total / min(max(cores() // share.cpus, 1), share.at_once or math.inf, cost.at_once)


@lru_cache(maxsize=1024)
def measure(model: Settings, batch: int, on: str) -> tuple[float, float]:
    """Return the seconds of an example in training and in evaluation, with one thread as in a simulation."""
    task, device = _Task(model), resolve_device(on)
    example = task.example()
    options = TrainOptions(learning_rate=1e-4, epochs=1, batch_size=batch)
    text = example.dtype == torch.int64
    size = 1 if text else 100  # a batch of evaluation; of a text, a client has one row

    def invent(rows: int, steps: int) -> Split:
        """Return data for some steps, of the shape of the data set."""
        classes = task.facts.classes
        if text:
            inputs = torch.randint(classes, (rows, PIECE * steps))
            return Split(inputs, inputs, reading=Reading(hides_as=classes)).to(device)
        targets = torch.randint(classes, (rows * steps,))
        return Split(torch.randn(rows * steps, *example.shape[1:]), targets).to(device)

    with torch_threads(1), torch.random.fork_rng(devices=[]):
        module = task.build(model.mix.global_rate).to(device)
        seconds = []
        for call in (
            lambda: train(module, invent(batch, 4), options, seed=0),
            lambda: evaluate(module, invent(size, 4)),
        ):
            call()  # the first one is slower
            number = math.ceil(0.1 / Timer(call).timeit(1))
            seconds.append(min(Timer(call).repeat(3, number)) / number / 4)
    return seconds[0] / batch, seconds[1] / size


HEADER = ("job", "parameters", "MACs", "time", "state", "unlike the published settings")


def list_jobs(jobs: Sequence[Job]) -> str:
    """Return a table of jobs: what each costs, how far it is, and how long the rest takes, or all of it took.

    Estimates are stretched by as much as finished jobs with the same data took longer than estimated.
    """
    stages = [job.stage for job in jobs]
    records = [RunFolder(job.path).history() if job.stage in (BEGUN, DONE) else [] for job in jobs]
    costs = [_estimate(job, len(own)) for job, own in zip(jobs, records, strict=True)]
    took = {n: sum(one.seconds for one in records[n]) for n, stage in enumerate(stages) if stage == DONE}
    rows, left = [], []
    for number, (job, (parameters, macs, seconds)) in enumerate(zip(jobs, costs, strict=True)):
        alike = [n for n in took if jobs[n].settings.data.name == job.settings.data.name and costs[n][2]]
        expected = math.fsum(costs[n][2] or 0.0 for n in alike)
        if seconds is not None and expected:
            seconds *= math.fsum(took[n] for n in alike) / expected
        seconds = took.get(number, seconds)
        left += [] if stages[number] in ENDED else [seconds]
        begun = f"round {len(records[number])} of {job.settings.num_rounds}"
        state = begun if stages[number] == BEGUN else stages[number]
        time = "?" if seconds is None else duration(seconds)
        rows.append((job.path.name, parameters, macs, time, state, describe_changes(job)))
    known = [own for own in left if own is not None]
    unknown = f", without {len(left) - len(known)} unknown" if len(known) < len(left) else ""
    summary = f"{len(jobs)} jobs, {len(took)} of them done; the others take about {duration(sum(known))}"
    return f"{render(HEADER, rows, 'table')}\n\n{summary}{unknown}"


def _estimate(job: Job, done: int) -> tuple[str, str, float | None]:
    """Return mean parameters, multiplications and, of the rounds to come, seconds; of a finished job, of all rounds."""
    left = 0 if job.stage == DONE else min(done, job.settings.num_rounds - 1)
    try:
        cost = compute_cost(job)
        parameters = {rate: float(profile_at(job.settings, rate).parameters) for rate in job.settings.mix.rates}
        shown = printed(job.settings.mix.mean(parameters)), f"{compute_macs(job, cost):.2e}"
        return *shown, estimate_seconds(job, compute_cost(job, left))
    except Exception:  # a user's own model raises what it likes; the job itself will say so
        return "?", "?", None


def describe_changes(job: Job) -> str:
    """Return in a line what differs from the published settings."""
    return " ".join(f"{key}={value}" for key, value in job.changes.items())
