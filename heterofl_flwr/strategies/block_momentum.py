"""InclusiveFL's momentum distillation: what deeper blocks learn also moves the last block of shallower models."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.core.counting_mean import Aggregator
from heterofl_flwr.core.exchange import exchanged_parameters
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.depth import find_blocks
from heterofl_flwr.nn.models import Build


class BlockMomentum:
    """Momentum distillation (Liu et al., KDD 2022) after the counting mean, for ``HeteroFL(aggregator=...)``.

    Where a level has l blocks and the next deeper one m, block l changes by ``(1 - share) * own + share * mean``, with
    the mean over the changes of blocks l to m; blocks that nobody trained in a round are left out. Where the paper has
    gradients that the server applies, these are the changes of the round's mean, which includes those of the larger
    models; in the authors' code each size has a last block of its own.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        From a rate to the model at that rate.
    mix : str | Mix
        The rates of the clients.
    blocks : str
        The pattern of the blocks' names, such as ``"layers.*"``. A parameter that has another shape in every deeper
        block keeps its own change.
    share : float
        The paper's beta; 0.2 in the authors' command.
    """

    def __init__(self, build: Build, mix: str | Mix, blocks: str, share: float = 0.2) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"share is {share}; expected a number from 0 to 1")
        self._share = share
        with kept_random_state():
            self._teachers = _find_teachers(build, mix if isinstance(mix, Mix) else Mix.parse(mix), blocks)
        if not self._teachers:
            raise ConfigError(
                f"blocks {blocks!r}: no parameter of a level's last block has the shape that it has in a deeper block, "
                f"so nothing can be distilled: name the model's blocks, choose a model of equal blocks "
                f"(model.hidden=64,64,64,64), or levels of different depths"
            )

    def __call__(self, global_state: Mapping[str, Tensor], *args: Any, **checks: Any) -> Aggregator:
        """Open the aggregator of a round, as ``Aggregator`` does."""
        if missing := sorted({name for names in self._teachers.values() for name in names} - global_state.keys()):
            raise ConfigError(
                f"momentum between blocks needs {', '.join(missing[:5])}, which the server does not have: let the "
                f"parameters of all blocks travel (shared or server.shared)"
            )
        return _Aggregator(global_state, *args, momentum=self, **checks)

    def adjust(
        self, old: Mapping[str, Tensor], new: dict[str, Tensor], held: Callable[[str], Tensor]
    ) -> dict[str, Tensor]:
        """Return the mean of a round with the last block of each level moved; entries that nobody held stay."""
        moved = {}
        for name, teachers in self._teachers.items():
            changes = [new[own] - old[own] for own in teachers if bool((held(own) > 0).any())]
            if changes:
                mean = torch.stack(changes).mean(0)
                step = (1 - self._share) * (new[name] - old[name]) + self._share * mean
                moved[name] = torch.where(held(name) > 0, old[name] + step, old[name])
        return {**new, **moved}


def _find_teachers(build: Build, mix: Mix, blocks: str) -> dict[str, list[str]]:
    """Return, for each parameter of the last block of a level, itself and those of its shape in deeper blocks."""
    full = build(mix.global_rate)
    shapes = {name: own.shape for name, own in exchanged_parameters(full).items()}
    order = find_blocks(full, blocks)
    teachers: dict[str, list[str]] = {}
    for small, large in pairwise(sorted((find_blocks(build(rate), blocks) for rate in mix.rates), key=len)):
        if not small or len(small) == len(large):
            continue
        last = small[-1]
        deeper = [block for block in order[order.index(last) + 1 :] if block in large]
        for name in [name for name in shapes if name.startswith(f"{last}.")]:
            others = [f"{block}{name.removeprefix(last)}" for block in deeper]
            if alike := [other for other in others if shapes.get(other) == shapes[name]]:
                teachers[name] = [name, *alike]
    return teachers


class _Aggregator(Aggregator):
    """A counting mean that ``BlockMomentum`` adjusts."""

    def __init__(self, *args: Any, momentum: BlockMomentum, **checks: Any) -> None:
        super().__init__(*args, **checks)
        self._momentum = momentum

    def result(self) -> dict[str, Tensor]:
        """Return the new global state and end the aggregation."""
        return self._momentum.adjust(self._state, super().result(), self.held)
