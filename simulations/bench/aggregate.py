"""Time and memory of averaging ten replies of the paper's models, two of each level a to e.

The reference is a plain implementation of the counting mean, as in the HeteroFL authors' code: index tensors for each
client and parameter, a tensor of sums, a tensor of counts, and boolean masks at the end.
"""

import argparse
import statistics
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from heterofl_flwr.core import LEVELS, Aggregation, Axis, Plan
from heterofl_flwr.nn import PAPER
from simulations.bench.measure import Goal, in_turns, peak_of, print_row

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """A global state and the replies of ten clients."""

    state: State
    label_rows: Sequence[str]
    replies: Sequence[tuple[Plan, State, Sequence[int] | None]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="measurements, after one that is thrown away")


def run(options: argparse.Namespace) -> list[Goal]:
    torch.set_num_threads(1)
    print(f"ten replies, two of each level; one thread; median of {options.rounds} alternating runs")
    print("models: memory of 10 and of 1000 replies, in sizes of the model\n")
    print_row("model, rows", ("ours, ms", "reference, ms", "ratio", "models, 10", "models, 1000"))
    ratios, memories = [], []
    for name in PAPER:
        for labelled in (False, True):
            case = make_case(name, labelled=labelled)
            torch.testing.assert_close(average(case), average_plainly(case), rtol=1e-6, atol=1e-6)
            calls = {"ours": partial(average, case), "reference": partial(average_plainly, case)}
            seconds = in_turns({side: partial(time_call, call) for side, call in calls.items()}, options.rounds)
            ours, reference = (statistics.median(seconds[side]) * 1e3 for side in calls)
            ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
            size = sum(tensor.numel() * tensor.element_size() for tensor in case.state.values())
            memory = [peak_of(partial(average, case, times)) / size for times in (1, 100)]
            print_row(f"{name}, {'of labels' if labelled else 'all'}", (ours, reference, ratio, *memory))
            memories += memory
            ratios += [] if labelled else [ratio]
    return [
        Goal("speed with all rows, in times the reference's, least", min(ratios), least=30),
        Goal("mean", statistics.geometric_mean(ratios), least=45),
        Goal("memory in models, most", max(memories), most=2.5),
    ]


def time_call(call: Callable[[], object]) -> float:
    """Return the mean seconds of a call, over as many calls as take a fifth of a second."""
    number, total = timeit.Timer(call).autorange()
    return total / number


def make_case(name: str, *, labelled: bool) -> Case:
    """Return a case with random weights of a paper model and ten replies, with or without label sets."""
    generator = torch.Generator().manual_seed(0)
    build = PAPER[name].build()
    full = build(1.0)
    state = {key: tensor.detach() for key, tensor in full.named_parameters()}
    label_rows: tuple[str, ...] = full.label_rows  # type: ignore[assignment]
    classes = min(state[row].shape[0] for row in label_rows)
    # The paper's clients have two of ten classes, or about 3,000 of 33,278 words.
    own = 2 if classes == 10 else 3000
    plans = {rate: Plan.of(full, build(rate)) for rate in LEVELS.values()}
    replies = []
    for rate in [*LEVELS.values()] * 2:
        received = plans[rate].extract(state).items()
        sub = {key: value + torch.randn(value.shape, generator=generator) for key, value in received}
        labels = torch.randperm(classes, generator=generator)[:own].tolist()
        replies.append((plans[rate], sub, labels if labelled else None))
    return Case(state, label_rows, replies)


def average(case: Case, times: int = 1) -> State:
    """Average with this package."""
    aggregator = Aggregation(case.state, case.label_rows, extra_rows=False)
    for plan, sub, labels in [*case.replies] * times:
        aggregator.add(plan, sub, labels=labels)
    return aggregator.result()


def average_plainly(case: Case) -> State:
    """Average with the operations of the authors' code, in their order."""
    new = {}
    for name, old in case.state.items():
        total, count = torch.zeros_like(old), torch.zeros_like(old)
        for plan, sub, labels in case.replies:
            index, local = [positions(axis) for axis in plan.axes[name]], sub[name]
            if labels is not None and name in case.label_rows:
                index[0], local = index[0][labels], local[labels]
            # Kernels are never sliced, so only the first two axes need positions.
            total[torch.meshgrid(index[:2], indexing="ij")] += local
            count[torch.meshgrid(index[:2], indexing="ij")] += 1
        total[count > 0] = total[count > 0].div_(count[count > 0])
        new[name] = old.clone()
        new[name][count > 0] = total[count > 0]
    return new


def positions(axis: Axis) -> Tensor:
    """Return the positions that an axis keeps."""
    return torch.arange(axis.size).view(axis.parts, -1)[:, : axis.part[1]].reshape(-1)
