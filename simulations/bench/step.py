"""A client's training step at each level: our engines beside a plain loop.

The plain loop is that of ``plainly``: single pictures, a mask built in each step, ``torch.optim.SGD``, loss and
accuracy read after each step. Each side has a process of its own, with equally many threads, and clients of ours keep
freed memory as they do in a run. Before anything is timed, all train from the same start on the same batches, and must
agree.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from heterofl_flwr.core import LEVELS
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Split
from heterofl_flwr.nn import PAPER
from heterofl_flwr.training import ENGINES, TrainingJob, TrainOptions, keep_freed_memory, train, train_together
from simulations.bench import plain_loop
from simulations.bench.measure import own_process, print_verdict

LEAST_RATIOS = {"a": 1.3, "e": 2.0}
TOLERANCE = 1e-4
CHECKED_STEPS = 5
CLASSES = 7
"""Of ten; so there is something to mask."""

MODELS = {"cnn": ("mnist", plain_loop.MNIST), "preresnet18": ("cifar10", plain_loop.CIFAR10)}
PLAIN, OURS, COHORT = "plain loop", "engine plain", "engine cohort"


@dataclass(frozen=True, slots=True)
class Case:
    """What one client trains."""

    model: str  # a name in `MODELS`
    rate: float  # the model's
    steps: int  # batches of ten; the client trains on each once
    together: int  # how many clients a cohort has
    seed: int  # of parameters, pictures and order

    @property
    def options(self) -> TrainOptions:
        """How it trains."""
        varied = MODELS[self.model][1].varied
        return TrainOptions(learning_rate=0.01, epochs=1, augment="crop-flip" if varied else "none")

    def build(self) -> nn.Module:
        """Return its model, as the server sends it."""
        torch.manual_seed(self.seed)
        return PAPER[MODELS[self.model][0]].build()(self.rate)

    def pictures(self) -> tuple[Tensor, Tensor]:
        """Return its pictures in bytes, and their labels."""
        generator = torch.Generator().manual_seed(self.seed)
        number = self.steps * self.options.batch_size
        shape = PAPER[MODELS[self.model][0]].shape
        pixels = torch.randint(256, (number, *shape), dtype=torch.uint8, generator=generator)
        return pixels, torch.randint(CLASSES, (number,), generator=generator)

    def work(self) -> TrainingJob:
        """Return the client's work as our engines take it."""
        pixels, labels = self.pictures()
        split = Split(MODELS[self.model][1].inputs(pixels), labels)
        return TrainingJob(model=self.build(), split=split, seed=self.seed, classes=torch.arange(CLASSES))

    def members(self) -> list["Case"]:
        """Return the clients of a cohort that begins with this one."""
        return [replace(self, seed=self.seed + number) for number in range(self.together)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=list(MODELS), default="cnn", help="preresnet18 trains on CIFAR10's sizes")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, for both sides")
    parser.add_argument("--cohort", type=int, default=5, metavar="K", help="clients that engine cohort trains together")
    parser.add_argument("--rounds", type=int, default=5, help="measurements, after one that is thrown away")
    parser.add_argument("--steps", type=int, default=60, help="steps of each measurement")


def run(options: argparse.Namespace) -> bool:
    sides: dict[str, Callable[[Case], float]] = {PLAIN: time_plain_loop, OURS: time_engine}
    if "cohort" in ENGINES:
        sides[COHORT] = time_cohort
    else:
        print("there is no engine cohort in this version, so it is left out")
    print(
        f"{options.model}, batches of ten; {options.threads} threads; seed 0; median of {options.rounds} alternating "
        f"measurements of {options.steps} steps{f'; cohorts of {options.cohort}' if COHORT in sides else ''}\n"
    )
    cases = {level: Case(options.model, rate, options.steps, options.cohort, 0) for level, rate in LEVELS.items()}
    for case in cases.values():
        check_equal(case)
    print("level" + "".join(f"{side + ' ms':>18}{'ratio' if side != PLAIN else '':>7}" for side in sides))
    times: dict[str, list[Sequence[float]]] = {side: [] for side in sides}
    best = {}
    with ExitStack() as stack:
        workers = {side: stack.enter_context(own_process(options.threads)) for side in sides}
        for level, case in cases.items():
            # Alternately, so that all sides see the noise; the first time each warms up.
            turns = [
                [worker.submit(sides[side], case).result() for side, worker in workers.items()]
                for _ in range(options.rounds + 1)
            ]
            found = zip(*turns, strict=True)
            for side, own in zip(sides, found, strict=True):
                times[side].append(own[1:])
            ratios = {side: statistics.median(ratio(times[PLAIN][-1], own[-1])) for side, own in times.items()}
            best[level] = max(ratios[side] for side in sides if side != PLAIN)
            print(f"{level:<5}" + "".join(_shown(side, times[side][-1], ratios[side]) for side in sides))
    return verdict(best)


def verdict(best: Mapping[str, float]) -> bool:
    passed = all(best[level] >= least for level, least in LEAST_RATIOS.items())
    shown = (f"level {level} {best[level]:.2f} times as fast (goal {own:g})" for level, own in LEAST_RATIOS.items())
    return print_verdict(passed, f" with the faster engine: {'; '.join(shown)}")


def ratio(reference: Iterable[float], ours: Iterable[float]) -> list[float]:
    """Return how many times as fast each measurement of ours is as the reference's beside it."""
    return [theirs / mine for theirs, mine in zip(reference, ours, strict=True)]


def time_plain_loop(case: Case) -> float:
    """Return the milliseconds of a step of the plain loop."""
    model, data = case.build(), plain_loop.Pictures(*case.pictures(), MODELS[case.model][1])
    start = time.perf_counter()
    plain_loop.train(model, plain_loop.loader(data, case.options.batch_size), range(CLASSES), case.options)
    return (time.perf_counter() - start) * 1e3 / case.steps


def time_engine(case: Case) -> float:
    """Return the milliseconds of a step of the engine for single clients."""
    keep_freed_memory()
    work = case.work()
    start = time.perf_counter()
    train(work.model, work.split, case.options, classes=work.classes, seed=work.seed, engine="plain")
    return (time.perf_counter() - start) * 1e3 / case.steps


def time_cohort(case: Case) -> float:
    """Return the milliseconds of a step of each client where several train together."""
    keep_freed_memory()
    works = [member.work() for member in case.members()]
    start = time.perf_counter()
    train_together(works, case.options, engine="cohort")
    return (time.perf_counter() - start) * 1e3 / (case.steps * len(works))


def check_equal(case: Case) -> None:
    """Raise if a few steps from the same start on the same batches end elsewhere: then they are not the same work."""
    case = replace(case, steps=CHECKED_STEPS)
    # Pictures stay as they are, because each side has its own way of drawing how it varies them.
    options = replace(case.options, augment="none")
    look = replace(MODELS[case.model][1], varied=False)
    members = case.members()
    expected = []
    for member in members:
        model = member.build()
        order = torch.randperm(
            CHECKED_STEPS * options.batch_size, generator=torch.Generator().manual_seed(derive(member.seed, "batches"))
        )
        data = plain_loop.Pictures(*member.pictures(), look)
        plain_loop.train(model, plain_loop.loader(data, options.batch_size, order.tolist()), range(CLASSES), options)
        expected.append(model)
    for engine in ENGINES.keys() & {"plain", "cohort"}:
        works = [member.work() for member in members]
        train_together(works, options, engine=engine)
        for work, model in zip(works, expected, strict=True):
            compare(engine, work.model, model)


def compare(engine: str, ours: nn.Module, reference: nn.Module) -> None:
    for (name, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        difference = float((mine - theirs).detach().abs().max())
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"engine {engine} and the plain loop differ by {difference:.2g} in {name} after {CHECKED_STEPS} steps "
                f"(expected at most {TOLERANCE:g}), so their times cannot be compared"
            )


def _shown(side: str, times: Sequence[float], ratio: float) -> str:
    return f"{statistics.median(times):>18.2f}" + (f"{ratio:>7.2f}" if side != PLAIN else " " * 7)
