"""The average of LoRA adapters of unequal rank by their products, beside the counting mean.

An adapter adds ``scaling * B @ A`` to what a layer computes, with ``A`` (rank, inputs) and ``B`` (outputs, rank). A
client of a smaller rank holds the first rows of ``A`` and the first columns of ``B``, and its scaling is the same. The
counting mean averages the entries of ``A`` and of ``B``, but mean(B) @ mean(A) is not the mean of the products B @ A.

``ProductAggregator`` averages the products and cuts the mean to the server's rank (FlexLoRA, Bai et al., 2024).

Names are those of peft. What else is shared, such as biases, goes by the counting mean.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.counting_mean import Aggregator
from heterofl_flwr.core.slice_plan import Plan

FACTORS = ("lora_", "lora_embedding_")
"""How peft begins the names of an adapter's factors: ``lora_A``, or ``lora_embedding_A``."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """The names of an adapter's parameters; the rank is axis 0 of ``a`` and axis 1 of ``b``."""

    a: str
    b: str


def find_adapters(names: Iterable[str]) -> list[Adapter]:
    """Return the adapters of which both factors are among these names."""
    known, found = set(names), []
    for name in names:
        for start in FACTORS:
            layer, sign, adapter = name.rpartition(f"{start}A.")
            other = f"{layer}{start}B.{adapter}"
            if sign and other in known and layer[-1:] in ("", "."):
                found.append(Adapter(name, other))
    return found


class ProductAggregator(Aggregator):
    """An ``Aggregator`` that averages the products B @ A of adapters and cuts the mean to the server's rank.

    The directions come in the order of their singular values, so that the prefix that a level gets is the best
    approximation of its rank. The memory is that of all replies' factors; the mean itself is never written out. What
    else is shared goes by the counting mean.
    """

    by_entry = False

    def __init__(self, global_state: Mapping[str, Tensor], label_rows: Sequence[str] = (), **checks: Any) -> None:
        super().__init__(global_state, label_rows, **checks)
        self._factors: dict[Adapter, list[tuple[Tensor, Tensor, Tensor]]]
        self._factors = {own: [] for own in find_adapters(self._state)}
        if not self._factors:
            raise ConfigError(
                f"{type(self).__name__} averages LoRA adapters, and none is shared: found {len(self._state)} "
                f"parameters, expected names such as 'layer.lora_A.default.weight' and 'layer.lora_B.default.weight'"
            )
        self._others: dict[Plan, Plan] = {}

    def _collect(self, plan: Plan, sub: Mapping[str, Tensor], rows: Tensor | None, weight: float) -> None:
        if plan not in self._others:
            self._others[plan] = self._without_adapters(plan)
        super()._collect(self._others[plan], sub, rows, weight)
        for adapter, kept in self._factors.items():
            if adapter.a in plan.axes:
                left, right = (_matrix(sub[name]) for name in (adapter.b, adapter.a))
                weights = left.new_full((len(left),), weight)
                if rows is not None and adapter.b in self._rows.sizes:
                    held = rows[rows < len(left)]
                    weights = torch.zeros_like(weights).index_fill_(0, held.to(weights.device), weight)
                kept.append((left * weights.unsqueeze(1), right, weights))

    def _without_adapters(self, plan: Plan) -> Plan:
        """Return the part of a plan that goes by the counting mean."""
        for adapter in self._factors:
            for name, rank in ((adapter.a, 0), (adapter.b, 1)):
                axes = plan.axes.get(name, ())
                cut = [number for number, axis in enumerate(axes) if axis.kept < axis.full and number != rank]
                if cut or (adapter.a in plan.axes) != (adapter.b in plan.axes):
                    raise ConfigError(
                        f"{name}: {type(self).__name__} needs both factors of an adapter, cut along the rank alone; "
                        f"found {axes or 'none'}. Use the counting mean where clients cut the layers too"
                    )
        own = {name for adapter in self._factors for name in (adapter.a, adapter.b)}
        return Plan({name: axes for name, axes in plan.axes.items() if name not in own})

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Return the new global state and end the aggregation."""
        new = super().result()
        for adapter, kept in self._factors.items():
            total = torch.stack([weights for *_, weights in kept]).sum(0) if kept else torch.zeros(1)  # (outputs,)
            if not total.any():
                continue
            left = torch.cat([left for left, *_ in kept], 1) / total.where(total > 0, 1.0).unsqueeze(1)
            right = torch.cat([right for _, right, _ in kept])
            # Outputs that nobody held keep their product; and where the clients' products have fewer directions than
            # there are ranks, the others are taken from the old A, with zeros in B.
            a, b = (_matrix(self._state[name]) for name in (adapter.a, adapter.b))
            left, right = torch.cat([left, b * (total == 0).unsqueeze(1)], 1), torch.cat([right, a])
            for name, tensor in zip((adapter.b, adapter.a), truncated(left, right, len(a)), strict=True):
                new[name] = tensor.to(self._state[name].dtype).reshape(self._state[name].shape)
        self._factors.clear()
        return new


def truncated(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return B and A of a rank whose product is as close to ``left @ right`` as can be, the largest direction first.

    B has the singular values and A has orthonormal rows, so a direction whose singular value is 0 can still learn: its
    gradient is that of a fresh adapter. Both are 0 beyond as many ranks as there are outputs or inputs.
    """
    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(left), torch.linalg.qr(right.mT)
    u, values, v = torch.linalg.svd(r_left @ r_right.mT, full_matrices=False)
    b, a = (q_left @ u * values)[:, :rank], (v @ q_right.mT)[:rank]
    missing = rank - len(a)
    return torch.nn.functional.pad(b, (0, missing)), torch.nn.functional.pad(a, (0, 0, 0, missing))


def _matrix(tensor: Tensor) -> Tensor:
    """Return a parameter as a matrix in double precision: a convolution's kernel is part of its inputs."""
    return tensor.detach().to(torch.float64, copy=True).flatten(1)
