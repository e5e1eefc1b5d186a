"""InclusiveFL's momentum distillation: what deeper blocks learn also moves the last block of shallower models."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.core.counting_mean import Aggregator
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.depth import Build, find_blocks


class BlockMomentum:
    """Momentum distillation (Liu et al., KDD 2022) after the counting mean, for ``HeteroFL(aggregator=...)``.

    The last block of a model of l blocks, beside the next larger one of m, changes by ``(1 - share) * own + share *
    mean``, with the mean over the changes of blocks l to m; blocks that nobody trained in a round are left out. Where
    the paper has gradients that the server applies, these are the changes of the round's mean, which includes those of
    the larger models; in the authors' code each size has a last block of its own.

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
        models = [build(rate) for rate in reversed((mix if isinstance(mix, Mix) else Mix.parse(mix)).rates)]
        shapes = {name: own.shape for name, own in models[-1].named_parameters()}
        self._teachers: dict[str, list[str]] = {}
        for small, large in pairwise(find_blocks(model, blocks) for model in models):
            if not small or len(small) == len(large):
                continue
            last, deeper = small[-1], large[large.index(small[-1]) + 1 :]
            for name in [name for name in shapes if name.startswith(f"{last}.")]:
                others = [f"{block}{name.removeprefix(last)}" for block in deeper]
                if alike := [other for other in others if shapes.get(other) == shapes[name]]:
                    self._teachers[name] = [name, *alike]
        if not self._teachers:
            raise ConfigError(
                f"blocks {blocks!r}: no parameter of a level's last block has the shape that it has in a deeper block, "
                f"so nothing can be distilled: choose a model of equal blocks (model.hidden=64,64,64,64), or "
                f"levels of different depths"
            )

    def __call__(self, *args: Any, **checks: Any) -> Aggregator:
        """Open the aggregator of a round, as ``Aggregator`` does."""
        return _Aggregator(*args, momentum=self, **checks)

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


class _Aggregator(Aggregator):
    """A counting mean that ``BlockMomentum`` adjusts."""

    def __init__(self, *args: Any, momentum: BlockMomentum, **checks: Any) -> None:
        super().__init__(*args, **checks)
        self._momentum = momentum

    def result(self) -> dict[str, Tensor]:
        """Return the new global state and end the aggregation."""
        return self._momentum.adjust(self._state, super().result(), self.held)
