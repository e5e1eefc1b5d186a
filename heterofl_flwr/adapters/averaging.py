"""Averages of LoRA adapters of unequal rank: product, stack and zero-padding, beside the counting mean.

An adapter adds ``scaling * B @ A`` to what a layer computes, with ``A`` (rank, inputs) and ``B`` (outputs, rank). A
client of a smaller rank holds the first rows of ``A`` and the first columns of ``B``, and its scaling is the same. The
counting mean averages the entries of ``A`` and of ``B``, but mean(B) @ mean(A) is not the mean of the products B @ A.

- ``ProductAggregator`` averages the products and cuts the mean to the server's rank (FlexLoRA, Bai et al., 2024).
- ``StackAggregator`` adds the mean of the products to an update that all clients get, and adapters start anew (FLoRA,
  Wang et al., 2024).
- ``ZeroPaddedAggregator`` counts what a client lacks as zeros: what these papers compare with.

Names are those of peft. What else is shared, such as biases, goes by the counting mean.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.core.axes import Axes, Axis
from heterofl_flwr.core.counting_mean import Aggregator, Count
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.errors import ConfigError

EMBEDDING = "lora_embedding_"
FACTORS = ("lora_", EMBEDDING)
"""How peft begins the names of an adapter's factors: ``lora_A``, or ``lora_embedding_A``."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """The names of an adapter's parameters; the rank is axis 0 of ``a`` and axis 1 of ``b``."""

    a: str
    b: str
    update: str  # of what earlier rounds have learned; see ``StackAggregator``

    @property
    def is_embedding(self) -> bool:
        """Whether it belongs to an embedding, where peft starts with zeros in A, and not in B."""
        return EMBEDDING in self.a


def find_adapters(names: Iterable[str]) -> list[Adapter]:
    """Return the adapters of which both factors are among these names."""
    known, found = set(names), []
    for name in names:
        for start in FACTORS:
            layer, sign, adapter = name.rpartition(f"{start}A.")
            other = f"{layer}{start}B.{adapter}"
            if sign and other in known and layer[-1:] in ("", "."):
                found.append(Adapter(name, other, f"{layer}lora_update.{adapter.removesuffix('.weight')}"))
    return found


class _AdapterAggregator(Aggregator):
    """An ``Aggregator`` that knows the adapters among the parameters, of which there must be some."""

    def __init__(self, global_state: Mapping[str, Tensor], label_rows: Sequence[str] = (), **checks: Any) -> None:
        super().__init__(global_state, label_rows, **checks)
        self._adapters = find_adapters(self._state)
        if not self._adapters:
            raise ConfigError(
                f"{type(self).__name__} averages LoRA adapters, and none is shared: found {len(self._state)} "
                f"parameters, expected names such as 'layer.lora_A.default.weight' and 'layer.lora_B.default.weight'"
            )


class ZeroPaddedAggregator(_AdapterAggregator):
    """An ``Aggregator`` for which a client holds zeros in the ranks that it lacks: the reference of the papers."""

    @cached_property
    def _rank_axes(self) -> dict[str, int]:
        """The axis of the ranks, by the names of the factors."""
        return {own.a: 0 for own in self._adapters} | {own.b: 1 for own in self._adapters}

    def _counts(self, name: str) -> dict[Axes, Count]:
        counts, number = super()._counts(name), self._rank_axes.get(name)
        if number is None:
            return counts
        padded: dict[Axes, Count] = {}
        for axes, count in counts.items():
            whole = Axis(axes[number].full, axes[number].full)
            every = (*axes[:number], whole, *axes[number + 1 :])
            padded[every] = padded.get(every, 0.0) + count
        return padded


class _FactorAggregator(_AdapterAggregator):
    """An ``Aggregator`` that keeps the factors of all replies until the end, and averages everything else."""

    by_entry = False

    def __init__(self, global_state: Mapping[str, Tensor], label_rows: Sequence[str] = (), **checks: Any) -> None:
        super().__init__(global_state, label_rows, **checks)
        self._factors: dict[Adapter, list[tuple[Tensor, Tensor, Tensor]]] = {own: [] for own in self._adapters}
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
        own = {name for adapter in self._factors for name in (adapter.a, adapter.b, adapter.update)}
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
            for name, tensor in self._renew(adapter, left, right, total > 0).items():
                old = self._state[name]
                new[name] = tensor.to(old.dtype).reshape(old.shape)
        self._factors.clear()
        return new

    def _renew(self, adapter: Adapter, left: Tensor, right: Tensor, held: Tensor) -> dict[str, Tensor]:
        """Return the adapter's new parameters.

        ``left @ right``, (outputs, all ranks) and (all ranks, inputs), is the mean of the clients' products; ``held``
        are the outputs for which somebody's counts.
        """
        raise NotImplementedError


class ProductAggregator(_FactorAggregator):
    """An ``Aggregator`` that averages the products B @ A of adapters and cuts the mean to the server's rank.

    The directions come in the order of their singular values, so that the prefix that a level gets is the best
    approximation of its rank. The memory is that of all replies' factors; the mean itself is never written out.
    """

    def _renew(self, adapter: Adapter, left: Tensor, right: Tensor, held: Tensor) -> dict[str, Tensor]:
        a, b = (_matrix(self._state[name]) for name in (adapter.a, adapter.b))
        # Outputs that nobody held keep their product; and where the clients' products have fewer directions than
        # there are ranks, the others are taken from the old A, with zeros in B.
        left, right = torch.cat([left, b * ~held.unsqueeze(1)], 1), torch.cat([right, a])
        new_b, new_a = truncated(left, right, len(a))
        return {adapter.a: new_a, adapter.b: new_b}


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


class StackAggregator(_FactorAggregator):
    """An ``Aggregator`` that adds the mean of the products B @ A to an update; the adapters then start anew.

    One client's factors stacked upon another's have the sum of their products as product, so nothing is lost, as in
    training the layers themselves. The update is a parameter of each adapted layer, as large as the layer's weight,
    that the server sends and clients do not train: give the strategy ``with_updates(build)``. What clients return of
    it is not used. A fresh ``A`` is drawn from the one before it, so it is a function of the run's seed and the round.
    """

    def __init__(self, global_state: Mapping[str, Tensor], label_rows: Sequence[str] = (), **checks: Any) -> None:
        super().__init__(global_state, label_rows, **checks)
        if missing := [adapter.update for adapter in self._factors if adapter.update not in self._state]:
            raise ConfigError(
                f"the model has no {missing[0]}, which StackAggregator adds what adapters have learned to: give the "
                f"strategy and the clients heterofl_flwr.adapters.with_updates(build), and share '*lora_*'"
            )

    def _renew(self, adapter: Adapter, left: Tensor, right: Tensor, held: Tensor) -> dict[str, Tensor]:
        a, b = self._state[adapter.a], self._state[adapter.b]
        fresh_a, fresh_b = torch.zeros_like(a), torch.zeros_like(b)
        if adapter.is_embedding:
            fresh_b = torch.randn(b.shape, generator=_next_generator(adapter, b))
        else:
            bound = 1 / math.sqrt(right.shape[1])  # as peft, and nn.Linear
            fresh_a = torch.rand(a.shape, generator=_next_generator(adapter, a)) * 2 * bound - bound
        # Outputs that nobody held keep their product, too: it moves into the update, as the old factors are dropped.
        learned = (left @ right).where(held.unsqueeze(1), _matrix(b) @ _matrix(a))
        return {
            adapter.a: fresh_a,
            adapter.b: fresh_b,
            adapter.update: _matrix(self._state[adapter.update]) + learned,
        }


def _next_generator(adapter: Adapter, drawn: Tensor) -> torch.Generator:
    """Return the generator of the draw that follows one."""
    digest = hashlib.blake2b(drawn.double().cpu().numpy().tobytes(), digest_size=8).digest()
    return torch.Generator().manual_seed(derive(int.from_bytes(digest, "big"), adapter.a))


def _matrix(tensor: Tensor) -> Tensor:
    """Return a parameter as a matrix in double precision: a convolution's kernel is part of its inputs."""
    return tensor.detach().to(torch.float64, copy=True).flatten(1)
