"""What a job has to compute, counted from its settings; the paper's data sets need not be there for it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import nn

from heterofl_flwr.app.launch import gpus
from heterofl_flwr.app.launch.request import Share
from heterofl_flwr.app.task import load_function
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.data import Reading, Split, load_dataset
from heterofl_flwr.grids.devices import PASSES
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.nn.models import PAPER, build_model
from heterofl_flwr.nn.profile import Profile, profile
from heterofl_flwr.settings import Settings, from_flat, model_options, short_name, to_flat
from heterofl_flwr.settings.presets import model_has
from heterofl_flwr.training import TrainOptions, evaluate, resolve_device, train
from simulations.sweep.job import Job

PIECE = 64
"""Words of a text that go through the model together; a piece is to a text what an image is to other data."""

SIZES: Mapping[str, tuple[int, int]] = {
    "mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "wikitext2": (100 * math.ceil(20_886 / PIECE), 10 * math.ceil(24_556 / PIECE)),
}
"""Examples, or pieces, of train and test."""


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """What is known of a data set: the sizes of its parts, one example, and the options that a model takes from it."""

    train: int
    test: int
    example: torch.Tensor
    options: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class JobCost:
    """What a job computes, in examples, by rate; and what the model of each rate costs."""

    trained: Mapping[float, float]  # examples that clients train on
    # examples that go through the model once: in evaluation, and where moments are measured
    evaluated: Mapping[float, float]
    profiles: Mapping[float, Profile]  # the cost of one example
    parameters: float  # mean parameters of a client's model
    at_once: int  # clients that can train together

    @property
    def macs(self) -> float:
        """Multiplications (with addition); a backward pass counts as two forward passes."""
        return math.fsum(
            cost.macs * (PASSES * self.trained.get(rate, 0) + self.evaluated.get(rate, 0))
            for rate, cost in self.profiles.items()
        )


def compute_cost(job: Job, done: int = 0) -> JobCost:
    """Return what a job computes after the rounds that are done, of which there are fewer than all."""
    settings, facts = job.settings, facts_of(job.settings.data.name, job.settings.data.root)
    mix = settings.mix
    profiles = {rate: profile_at(settings, rate) for rate in mix.rates}
    sampled = max(math.ceil(Fraction(str(settings.sample.fraction)) * job.launch.clients), 1)
    in_all = (settings.num_rounds - done) * sampled * settings.train.epochs * (facts.train // job.launch.clients)
    return JobCost(
        trained={rate: in_all * share for rate, share in zip(mix.rates, mix.shares, strict=True)},
        evaluated=_evaluated(settings, facts, done),
        profiles=profiles,
        parameters=mix.mean({rate: cost.parameters for rate, cost in profiles.items()}),
        at_once=sampled,
    )


def cost_if_known(job: Job, done: int = 0) -> JobCost | None:
    """Return ``compute_cost`` a job; None where its data are not there or its model cannot be built."""
    try:
        return compute_cost(job, done)
    except Exception:  # a user's own model raises what it likes; the job itself will say so
        return None


def model_at(settings: Settings, rate: float) -> Settings:
    """Return settings that tell a rate's model, and nothing else: what is known of it is remembered by them."""
    flat = to_flat(settings)
    told = {key: value for key, value in flat.items() if key.startswith(("data.", "model.")) and key != "data.split"}
    return from_flat({**told, "mix": str(Mix((rate,), (1,)))})


@lru_cache(maxsize=8)
def facts_of(name: str, root: str) -> Facts:
    """Return what is known of a data set; other data than the paper's are loaded for it."""
    short = short_name(name)
    if short in SIZES:
        setup = PAPER[short]
        return Facts(*SIZES[short], setup.example(), {**setup.options, "inputs": setup.shape})
    dataset = load_dataset(name, root or None)
    inputs = dataset.train.inputs
    if dataset.train.reading is not None:
        example = torch.zeros(1, PIECE, dtype=torch.int64)
        options: dict[str, object] = {"vocabulary": dataset.classes}
    else:
        example = torch.zeros_like(inputs[:1])
        options = {
            "channels": inputs.shape[1] if inputs.dim() == 4 else 1,
            "inputs": tuple(inputs.shape[1:]),
            "classes": dataset.classes,
        }
    return Facts(_pieces(dataset.train), _pieces(dataset.test), example, options)


def builder(settings: Settings, facts: Facts) -> Callable[[float], nn.Module]:
    """Return the function from a rate to the model of some settings."""
    name = settings.model.name
    if ":" in name:
        return load_function(name, "model.name")
    depends = {option: value for option, value in facts.options.items() if model_has(name, option)}
    return build_model(name, **model_options(settings), **depends)


def _evaluated(settings: Settings, facts: Facts, done: int) -> dict[float, float]:
    """Return the examples of the evaluations to come: each client with each rate, and the server with the test set."""
    every, mix = settings.evaluate.every, settings.mix
    if not every:
        return {}
    times = math.ceil(settings.num_rounds / every) - done // every
    moments = facts.train if settings.model.norm == "sbn" else 0
    levels = {True: times, False: 0, "last": 1}[settings.evaluate.levels]
    evaluated = dict.fromkeys(mix.rates, levels * (facts.test + moments))
    evaluated[mix.global_rate] = times * (facts.test + moments)
    evaluated[mix.global_rate] += settings.evaluate.central * (times + (not done)) * facts.test
    return {rate: float(number) for rate, number in evaluated.items()}


def _pieces(split: Split) -> int:
    return len(split) * (math.ceil(split.inputs.shape[1] / PIECE) if split.reading is not None else 1)


def profile_at(settings: Settings, rate: float) -> Profile:
    """Return what one example costs in a rate's model."""
    return _profile(model_at(settings, rate))


@lru_cache(maxsize=1024)
def _profile(model: Settings) -> Profile:
    facts = facts_of(model.data.name, model.data.root)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        made = builder(model, facts)(model.mix.global_rate)
    return profile(made, facts.example)


LONG_ENOUGH = 0.1  # seconds of a measurement
TIMES = 3
FIRST = 4  # steps to begin with
EVALUATED = 100  # examples of a batch of evaluation; of a text, a client has one row


class Clock:
    """Measures, once for each kind of model, the seconds of an example in training and in evaluation."""

    def __init__(self) -> None:
        self._known: dict[tuple[Settings, int, str], tuple[float, float]] = {}

    def seconds(self, job: Job, cost: JobCost) -> float:
        """Return how long the job's training and evaluation would take, undisturbed and with the engine ``plain``."""
        total = 0.0
        for rate in cost.profiles:
            trained, evaluated = self._example(job.settings, rate)
            total += trained * cost.trained.get(rate, 0.0) + evaluated * cost.evaluated.get(rate, 0.0)
        if resolve_device(job.settings.engine.device).type != "cpu":  # a GPU is no faster with two clients
            return total
        share = Share(cpus=job.launch.cpus, at_once=job.launch.parallel)
        return total / min(share.clients(gpus.cores(), 0), cost.at_once)

    def _example(self, settings: Settings, rate: float) -> tuple[float, float]:
        model, batch, device = model_at(settings, rate), settings.train.batch_size, settings.engine.device
        if (model, batch, device) not in self._known:
            self._known[model, batch, device] = _measure(model, batch, device)
        return self._known[model, batch, device]


def seconds_of_jobs(jobs: Mapping[str, Job], ended: Mapping[str, float], begun: Mapping[str, int]) -> dict[str, float]:
    """Return how long jobs take, by name; those of which nothing can be known are left out.

    ``ended`` has how long jobs took that have ended. The measured times of other jobs with the same data are stretched
    as theirs were. ``begun`` has how many rounds of a job are done: their time does not count.
    """
    clock, found = Clock(), {}
    for name, job in jobs.items():
        cost = cost_if_known(job, begun.get(name, 0))
        if cost is not None:
            found[name] = clock.seconds(job, cost)
    for data in {job.settings.data.name for job in jobs.values()}:
        own = [name for name, job in jobs.items() if job.settings.data.name == data and name in found]
        stretch = ratio([(found[name], ended[name]) for name in own if name in ended])
        found |= {name: ended.get(name, found[name] * stretch) for name in own}
    return found


def ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Return by how much longer jobs took than was expected, from pairs of both; 1 if there is none."""
    expected, took = (math.fsum(pair[place] for pair in pairs) for place in (0, 1))
    return took / expected if expected else 1.0


def _measure(settings: Settings, batch: int, on: str) -> tuple[float, float]:
    """Return the seconds of an example in training and in evaluation."""
    facts, device = facts_of(settings.data.name, settings.data.root), resolve_device(on)
    evaluated = 1 if facts.example.dtype == torch.int64 else EVALUATED
    options = TrainOptions(learning_rate=1e-4, epochs=1, batch_size=batch)
    with torch_threads(1), torch.random.fork_rng(devices=[]):  # one, as the clients of a simulation
        model = builder(settings, facts)(settings.mix.global_rate).to(device)

        def step(number: int) -> None:
            train(model, _invented(facts, batch, number).to(device), options, seed=0)

        def test(number: int) -> None:
            evaluate(model, _invented(facts, evaluated, number).to(device))

        return _seconds(step) / batch, _seconds(test) / evaluated


def _seconds(call: Callable[[int], None]) -> float:
    """Return the seconds of one of the steps of which ``call`` makes a number, as they are when nothing disturbs."""
    call(2)  # the first ones are slower
    number = math.ceil(FIRST * max(LONG_ENOUGH / _timed(call, FIRST), 1))
    return min(_timed(call, number) for _ in range(TIMES)) / number


def _timed(call: Callable[[int], None], number: int) -> float:
    start = time.perf_counter()
    call(number)
    return time.perf_counter() - start


def _invented(facts: Facts, batch: int, steps: int) -> Split:
    """Return data for so many steps, of the shape of a data set."""
    shape = facts.example.shape[1:]
    if facts.example.dtype == torch.int64:
        words = int(str(facts.options["vocabulary"]))
        rows = torch.randint(words, (batch, PIECE * steps))
        return Split(rows, rows, reading=Reading(hides_as=words))
    classes = int(str(facts.options["classes"]))
    return Split(torch.randn(batch * steps, *shape), torch.randint(classes, (batch * steps,)))
