"""How long a job takes on this machine: measured on a few steps of each model, corrected by jobs that have ended."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from heterofl_flwr.app.launch import gpus
from heterofl_flwr.app.launch.request import Share
from heterofl_flwr.data import Reading, Split
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.settings import Settings
from heterofl_flwr.training import TrainOptions, evaluate, resolve_device, train
from simulations.sweeps.job import Job
from simulations.sweeps.work import PIECE, Facts, Work, builder, facts_of, model_at, work_if_known

LONG_ENOUGH = 0.1  # seconds of a measurement
TIMES = 3
FIRST = 4  # steps to begin with
JUDGED = 100  # examples of a batch of evaluation; of a text, a client has one row


class Clock:
    """Measures, once for each kind of model, the seconds of an example in training and in evaluation."""

    def __init__(self) -> None:
        self._known: dict[tuple[Settings, int, str], tuple[float, float]] = {}

    def seconds(self, job: Job, work: Work) -> float:
        """Return how long the job's training and evaluation would take, undisturbed and with the engine ``plain``."""
        total = 0.0
        for rate in work.profiles:
            trained, judged = self._example(job.settings, rate)
            total += trained * work.trained.get(rate, 0.0) + judged * work.judged.get(rate, 0.0)
        if resolve_device(job.settings.engine.device).type != "cpu":  # a GPU is no faster with two clients
            return total
        share = Share(cpus=job.launch.cpus, at_once=job.launch.parallel)
        return total / min(share.clients(gpus.cores(), 0), work.at_once)

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
        work = work_if_known(job, begun.get(name, 0))
        if work is not None:
            found[name] = clock.seconds(job, work)
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
    judged = 1 if facts.example.dtype == torch.int64 else JUDGED
    options = TrainOptions(learning_rate=1e-4, epochs=1, batch_size=batch)
    with torch_threads(1), torch.random.fork_rng(devices=[]):  # one, as the clients of a simulation
        model = builder(settings, facts)(settings.mix.global_rate).to(device)

        def step(number: int) -> None:
            train(model, _invented(facts, batch, number).to(device), options, seed=0)

        def judge(number: int) -> None:
            evaluate(model, _invented(facts, judged, number).to(device))

        return _seconds(step) / batch, _seconds(judge) / judged


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
