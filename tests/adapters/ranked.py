"""A model with adapters of a rank, named as peft names them, that needs no peft; and rounds of replies for it."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from heterofl_flwr.core import Plan, width

A, B = "layer.lora_A.default.weight", "layer.lora_B.default.weight"


class Adapted(nn.Module):
    """Three inputs, two outputs; at rate 1 an adapter of rank 4, and a bias that all levels share."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        rank = width(4, rate)
        self.layer = nn.Module()
        self.layer.lora_A = nn.ModuleDict({"default": nn.Linear(3, rank, bias=False)})
        self.layer.lora_B = nn.ModuleDict({"default": nn.Linear(rank, 2, bias=False)})
        self.bias = nn.Parameter(torch.zeros(2))
        nn.init.zeros_(self.layer.lora_B["default"].weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.lora_B["default"](self.layer.lora_A["default"](x)) + self.bias


def state_of(a: Tensor, b: Tensor, **others: Tensor) -> dict[str, Tensor]:
    return {A: a, B: b, **others}


@dataclass(frozen=True)
class Replies:
    """A global state and what clients of several ranks send."""

    state: dict[str, Tensor]
    subs: list[dict[str, Tensor]]
    weights: list[float]

    def result(self, aggregate, order=None):
        """Return the new global state."""
        aggregator = aggregate(self.state)
        for number in range(len(self.subs)) if order is None else order:
            sub = self.subs[number]
            aggregator.add(Plan.between(self.state, sub), sub, weight=self.weights[number])
        return aggregator.result()

    def mean_product(self):
        """Return the mean of B @ A, (outputs, inputs), one entry at a time; the old product where nobody counts."""
        (outputs, _), (_, inputs) = self.state[B].shape, self.state[A].shape
        total = sum(self.weights)
        if not total:
            return (self.state[B].double() @ self.state[A].double()).numpy()
        mean = torch.zeros(outputs, inputs, dtype=torch.float64)
        for sub, weight in zip(self.subs, self.weights, strict=True):
            for output in range(outputs):
                for column in range(inputs):
                    ranks = range(len(sub[A]))
                    own = sum(sub[B][output, rank].item() * sub[A][rank, column].item() for rank in ranks)
                    mean[output, column] += weight * own / total
        return mean.numpy()


@st.composite
def replies(draw):
    """Draw the sizes of a layer, the ranks of the server and of some clients, and what these send."""
    outputs, inputs, rank = (draw(st.integers(1, largest)) for largest in (5, 6, 4))
    ranks = draw(st.lists(st.integers(1, rank), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def factors(own):
        return state_of(torch.randn(own, inputs, generator=generator), torch.randn(outputs, own, generator=generator))

    weights = [draw(st.sampled_from((1.0, 1.0, 0.5, 3.0, 0.0))) for _ in ranks]
    return Replies(factors(rank), [factors(own) for own in ranks], weights)
