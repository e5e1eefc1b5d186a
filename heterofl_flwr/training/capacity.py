"""The capacity of this machine: the largest of some rates that fits its memory and, by a timed step, its time.

A small machine must not try what is too large for it, so the smallest rate comes first, and the first that does not fit
ends the search.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from heterofl_flwr.core.exchange import exchanged_parameters
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

COPIES = 5
"""Of the parameters that are exchanged: the message's, the model's own, gradients, momentum, and the reply's."""

FILL = 0.8
"""Share of the free memory that a client may take; other programs run on a node too."""

STEPS = 3
_CGROUP = Path("/sys/fs/cgroup")


@contextmanager
def _explained_failure() -> Iterator[None]:
    """Say what to do where a model cannot run on torch's meta device."""
    try:
        yield
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise ConfigError(
            f"the memory of this model cannot be estimated without running it ({error}): name this node's level "
            "instead of level='auto'"
        ) from error


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A client's round, to measure its memory and time.

    ``build`` makes the model at a rate, ``inputs`` are those of one batch, and a round has so many ``steps``.
    """

    build: Callable[[float], nn.Module]
    inputs: Tensor
    steps: int
    device: torch.device

    def __post_init__(self) -> None:
        """Validate that there is data."""
        if not len(self.inputs) or self.steps < 1:
            raise DataError("there are no examples to try a training step on")

    def key(self, rates: Iterable[float]) -> str:
        """Return what the time and memory of these rates depend on, as text."""
        sizes = [f"{rate:g}:{_count(self._build_on_meta(rate).parameters())}" for rate in sorted(rates)]
        return f"{' '.join(sizes)}; inputs {tuple(self.inputs.shape)}; {self.steps} steps; {self.device}"

    @kept_random_state()
    def memory(self, rate: float) -> int:
        """Estimate the most bytes that training at a rate needs, without allocating them.

        It counts what operations save for the backward pass twice: gradients as large flow back, and convolutions take
        room of their own to compute in.
        """
        model = self._build_on_meta(rate)
        trained, parameters = _count(exchanged_parameters(model).values()), _count(model.parameters())
        saved = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel() * tensor.element_size()
            return tensor

        with _explained_failure(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            # A model that is cut from another one, as by ``elastic``, has real values wherever it is built.
            values = {name: _move_to_meta(own) for name, own in (*model.named_parameters(), *model.named_buffers())}
            functional_call(model.train(), values, (self.inputs.to("meta"),))
        return 4 * (COPIES * trained + parameters - trained) + 2 * saved

    @kept_random_state()
    def seconds(self, rate: float) -> float:
        """Return the seconds of a training step at a rate: forward, backward, and SGD with momentum."""
        model = self.build(rate).to(self.device).train()
        inputs = self.inputs.to(self.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        times = []
        for _ in range(1 + STEPS):  # the first one warms up
            began = time.perf_counter()
            optimizer.zero_grad()
            loss = _find_output(model(inputs)).float().square().mean()
            loss.backward()
            optimizer.step()
            loss.item()  # waits for a GPU
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    @kept_random_state()
    def _build_on_meta(self, rate: float) -> nn.Module:
        """Return the model on torch's meta device, as far as its builder makes its parameters anew."""
        with _explained_failure(), torch.device("meta"):
            return self.build(rate)


def _find_output(outputs: object) -> Tensor:
    """Return the first tensor of a model's outputs that gradients can come from."""
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise ConfigError(
        f"the model returns {type(outputs).__name__}, in which there are no outputs to train on: name this node's "
        "level instead of level='auto'"
    )


def _move_to_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def largest_rate(trial: Trial, rates: Iterable[float], budget: float, free: int | None = None) -> float:
    """Return the largest rate whose round fits in ``budget`` seconds and in memory.

    Where not even the smallest fits it is the smallest, with a warning: there is no smaller model.

    ``free`` is the number of bytes of memory that are free; None measures it.
    """
    free = free_bytes(trial.device) if free is None else free
    ascending = sorted(rates)
    largest, found, fault = ascending[0], [], ""
    for rate in ascending:
        seconds, needed = 0.0, trial.memory(rate)
        if needed > FILL * free:
            fault = f"needs {needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free"
        else:
            try:
                seconds = trial.steps * trial.seconds(rate)
                fault = f"{seconds:.3g} s a round, over {budget:g} s" if seconds > budget else ""
            except torch.OutOfMemoryError:
                fault = "out of memory in a step"
        found.append(f"level {level_name(rate)}: {fault or f'{seconds:.3g} s a round'}")
        if fault:
            break
        largest = rate
    report = logger.warning if fault and len(found) == 1 else logger.info
    report("level auto is %s (%s)", level_name(largest), "; ".join(found))
    return largest


def free_bytes(device: torch.device) -> int:
    """Return how many bytes are free: on a GPU its own, else the system's, or its control group's if that has less."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available: int = psutil.virtual_memory().available
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        return min(available, max(int(text) - int(used.read_text()) + _cached_bytes(), 0))
    return available


def _cached_bytes() -> int:
    """Return how many bytes of files the control group holds in memory and has not used lately; they make room."""
    stat = _CGROUP / "memory.stat"
    facts = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
    return int(facts.get("inactive_file", 0))
