"""Time of a client's training step at each level, with this package's engines and with a plain loop.

The plain loop is ``train_plainly``: single pictures, a mask built in each step, ``torch.optim.SGD``, loss and
accuracy read after each step. Each side has a process of its own with one thread; engines keep freed memory, as in a
run. Before the measurements, all sides train from equal parameters on equal batches and must agree.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import truediv

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped, unused-ignore]

from heterofl_flwr.common.errors import HeteroFLError
from heterofl_flwr.core import LEVELS
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Split
from heterofl_flwr.nn import PAPER
from heterofl_flwr.training import ENGINES, TrainingJob, TrainOptions, keep_freed_memory, train_together
from simulations.bench.measure import Goal, in_turns, print_row

TOLERANCE = 1e-4
CHECKED_STEPS = 5
CLASSES = 7
"""Number of classes in the data, of ten, so that the mask has an effect."""

PLAIN_LOOP = "plain loop"
"""Name of the reference; the other sides are engines of this package."""

NORMALISE = transforms.Normalize((0.1307,), (0.3081,))
"""Normalisation of MNIST's pixels."""

TRANSFORM = transforms.Compose([transforms.ToTensor(), NORMALISE])
"""Conversion of a picture to a normalised tensor."""

Example = Mapping[str, Tensor]


class Pictures(Dataset[Example]):
    """Data set of grey pictures, bytes of shape (number, 1, height, width), and their labels."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self._images, self._labels = pixels.squeeze(1).numpy(), labels.numpy()

    def __getitem__(self, index: int) -> Example:
        picture = Image.fromarray(self._images[index])
        return {"img": TRANSFORM(picture), "label": torch.tensor(self._labels[index])}

    def __len__(self) -> int:
        return len(self._labels)


def train_plainly(
    model: nn.Module, data: Dataset[Example], options: TrainOptions, order: Sequence[int] | None = None
) -> None:
    """Train a model in place as the HeteroFL authors' code does.

    In each epoch, pictures are opened, converted to tensors and normalised one at a time. Batches are lists of tensors
    that are stacked. The mask of classes is built in each step. Loss and accuracy are read after each step.
    The pictures are shuffled unless ``order`` is set.
    """
    batches = DataLoader(data, options.batch_size, shuffle=order is None, sampler=order, collate_fn=_collate)
    read: list[tuple[float, float]] = []
    model.train(True)
    optimizer = torch.optim.SGD(
        model.parameters(), options.learning_rate, options.momentum, weight_decay=options.weight_decay
    )
    for _ in range(options.epochs):
        for lists in batches:
            batch = {key: torch.stack(values) for key, values in lists.items()}
            optimizer.zero_grad()
            logits = model(batch["img"])
            mask = torch.zeros(logits.shape[1])
            mask[torch.arange(CLASSES)] = 1
            logits = logits.masked_fill(mask == 0, 0)
            loss = F.cross_entropy(logits, batch["label"])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), options.clip or 0.0)
            optimizer.step()
            right = (logits.topk(1, 1).indices == batch["label"].view(-1, 1)).float().mean()
            read.append((loss.item(), right.item()))


def _collate(examples: Sequence[Example]) -> Mapping[str, list[Tensor]]:
    return {key: [example[key] for example in examples] for key in examples[0]}


@dataclass(frozen=True, slots=True)
class Case:
    """The training job of clients."""

    rate: float  # rate of the model
    steps: int  # number of batches of ten; a client trains on each once
    together: int  # number of clients in a cohort
    seed: int = 0  # seed of parameters, pictures and order

    def train(self, side: str, *, ordered: bool = False) -> tuple[list[nn.Module], float]:
        """Train a client or a cohort on one side; return the models and the seconds.

        With ``ordered`` the plain loop reads the batches in the order of the engines.
        """
        paper, options = PAPER["mnist"], TrainOptions(learning_rate=0.01, epochs=1)
        number, jobs, pictures = self.steps * options.batch_size, [], []
        for seed in range(self.seed, self.seed + (self.together if side == "cohort" else 1)):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            pixels = torch.randint(256, (number, *paper.shape), dtype=torch.uint8, generator=generator)
            labels = torch.randint(CLASSES, (number,), generator=generator)
            model, split = paper.build()(self.rate), Split(NORMALISE(pixels / 255), labels)
            jobs.append(TrainingJob(model=model, split=split, seed=seed, classes=torch.arange(CLASSES)))
            pictures.append(Pictures(pixels, labels))
        start = time.perf_counter()
        if side == PLAIN_LOOP:
            draw = torch.Generator().manual_seed(derive(self.seed, "batches"))
            order = torch.randperm(number, generator=draw).tolist() if ordered else None
            train_plainly(jobs[0].model, pictures[0], options, order)
        else:
            train_together(jobs, options, engine=side)
        return [job.model for job in jobs], time.perf_counter() - start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["plain", "cohort"], help="what to measure")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS), help="of the models")
    parser.add_argument("--cohort", type=int, default=5, metavar="K", help="clients that engine cohort trains together")
    parser.add_argument("--rounds", type=int, default=5, help="measurements, after one that is thrown away")
    parser.add_argument("--steps", type=int, default=60, help="steps of each measurement")


def run(options: argparse.Namespace) -> list[Goal]:
    sides = [PLAIN_LOOP, *options.engines]
    print(f"batches of ten MNIST images; cpu, one thread; seed 0; cohorts of {options.cohort}")
    print(f"median of {options.rounds} alternating measurements of {options.steps} steps\n")
    cases = {level: Case(LEVELS[level], options.steps, options.cohort) for level in options.levels}
    for case in cases.values():
        check_equal(case, options.engines)
    print_row("level", chain.from_iterable((f"{side}, ms", "ratio") for side in sides))
    best = {}
    with ExitStack() as stack:
        # Spawned, because a fork of a process that has used torch may hang.
        spawn = multiprocessing.get_context("spawn")
        workers = {
            side: stack.enter_context(ProcessPoolExecutor(1, spawn, torch.set_num_threads, (1,))) for side in sides
        }
        for level, case in cases.items():
            measured = measure(workers, case, options.rounds)
            best[level] = max(measured[engine][1] for engine in options.engines)
            print_row(level, chain.from_iterable(measured.values()))
    return [
        Goal(f"level {level} with the fastest engine, in times the plain loop's speed", best[level], least=least)
        for level, least in (("a", 1.3), ("e", 2.0))
        if level in best
    ]


def measure(workers: Mapping[str, Executor], case: Case, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the milliseconds of a step on each side, and its speed relative to the plain loop."""
    times = in_turns({side: partial(_wait, worker, side, case) for side, worker in workers.items()}, rounds)
    speeds = {side: map(truediv, times[PLAIN_LOOP], own) for side, own in times.items()}
    return {side: (statistics.median(own), statistics.median(speeds[side])) for side, own in times.items()}


def _wait(worker: Executor, side: str, case: Case) -> float:
    return worker.submit(milliseconds, side, case).result()


def milliseconds(side: str, case: Case) -> float:
    """Return the milliseconds of a client's training step on one side."""
    if side != PLAIN_LOOP:
        keep_freed_memory()
    models, seconds = case.train(side)
    return seconds * 1e3 / (case.steps * len(models))


def check_equal(case: Case, engines: Sequence[str]) -> None:
    """Raise ``HeteroFLError`` if the sides differ after a few steps from equal parameters on equal batches."""
    case = replace(case, steps=CHECKED_STEPS)
    for engine in engines:
        for number, model in enumerate(case.train(engine)[0]):
            (reference,), _ = replace(case, seed=case.seed + number).train(PLAIN_LOOP, ordered=True)
            for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
                difference = float((mine - theirs).detach().abs().max())
                if not difference <= TOLERANCE:
                    raise HeteroFLError(
                        f"engine {engine} and the plain loop differ by {difference:.2g} in {name} after "
                        f"{CHECKED_STEPS} steps (expected at most {TOLERANCE:g}), so their times cannot be compared"
                    )
