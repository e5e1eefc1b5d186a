"""Averaging of LoRA adapters of unequal rank by their products (FlexLoRA, Bai et al., 2024).

An adapter adds ``scaling * B @ A`` to a layer's weight. The mean of the products is not mean(B) @ mean(A).
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.aggregator import CheckedReply
from heterofl_flwr.core.counting_mean import CountingMean
from heterofl_flwr.core.slice_plan import Plan

FACTOR_A = re.compile(r"(^|\.)lora_(embedding_)?A\.")
"""Pattern that finds the factor A of an adapter in a parameter name of peft."""


def find_adapters(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the names of the factors A and B of each adapter that has both in ``names``."""
    factors_b = {name: FACTOR_A.sub(r"\1lora_\2B.", name) for name in names}
    return [(name, b) for name, b in factors_b.items() if b != name and b in factors_b]


class ProductMean(CountingMean):
    """Mean of the products B @ A of adapters, truncated to the server's rank.

    Other parameters get the counting mean: each entry is averaged over the clients that hold it. The new factors are
    sorted by singular value. So for each r up to the server's rank, the first r columns of B times the first r rows of
    A are the mean's best approximation by a matrix of rank r. The clients' factors stay in memory until ``result`` is
    called.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        The global state, with at least one adapter.
    """

    by_entry = False

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__(state)
        # For each adapter and client: B times the weight of each row, A, and the weights.
        self._factors: dict[tuple[str, str], list[tuple[Tensor, Tensor, Tensor]]]
        self._factors = {names: [] for names in find_adapters(state)}
        if not self._factors:
            raise ConfigError(
                f"{type(self).__name__} averages LoRA adapters, and none is shared: found {len(state)} "
                f"parameters, expected names such as 'layer.lora_A.default.weight' and 'layer.lora_B.default.weight'"
            )
        self._other_plans: dict[Plan, Plan] = {}

    @torch.no_grad()
    def add(self, reply: CheckedReply) -> None:
        """Add a client's reply."""
        plan, weight = reply.plan, reply.weight
        if plan not in self._other_plans:
            adapted = {name for names in self._factors for name in names}
            self._other_plans[plan] = plan.without(adapted)
        self._add_to_sums(reply, {name: reply.tensors[name] for name in self._other_plans[plan].axes})
        self._holders.add(plan, reply.rows, weight)
        for (name_a, name_b), factors in self._factors.items():
            if name_a in plan.axes:
                a, b = (_matrix(reply.tensors[name].to(self._state[name].device)) for name in (name_a, name_b))
                weights = b.new_full((len(b),), weight)  # (outputs,)
                if name_b in reply.rows:
                    rows = reply.rows[name_b].to(weights.device)
                    weights = torch.zeros_like(weights).index_fill_(0, rows, weight)
                factors.append((b * weights.unsqueeze(1), a, weights))

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Return the new global state; call this once."""
        new = super().result()
        for (name_a, name_b), factors in self._factors.items():
            if not any(weights.any() for *_, weights in factors):
                continue
            total = torch.stack([weights for *_, weights in factors]).sum(0)  # (outputs,)
            b_all = torch.cat([b for b, *_ in factors], 1) / total.where(total > 0, 1.0).unsqueeze(1)
            a_all = torch.cat([a for _, a, _ in factors])
            # Outputs that no client holds keep the old product. If the clients' products have fewer directions than the
            # rank, directions of the old A fill the rest, with zeros in B.
            a, b = (_matrix(self._state[name]) for name in (name_a, name_b))
            b_all, a_all = torch.cat([b_all, b * (total == 0).unsqueeze(1)], 1), torch.cat([a_all, a])
            for name, tensor in zip((name_b, name_a), truncated(b_all, a_all, len(a)), strict=True):
                new[name] = tensor.to(self._state[name].dtype).reshape(self._state[name].shape)
        self._factors.clear()
        return new


def truncated(b_all: Tensor, a_all: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors (B, A) whose product has at most rank ``rank`` and is closest to ``b_all @ a_all``.

    If there are fewer singular values than ``rank``, the last columns of B and the last rows of A are zero.
    """
    (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b_all), torch.linalg.qr(a_all.mT)
    u, values, v = torch.linalg.svd(r_b @ r_a.mT, full_matrices=False)
    b, a = (q_b @ u * values)[:, :rank], (v @ q_a.mT)[:rank]
    missing = rank - len(a)
    return torch.nn.functional.pad(b, (0, missing)), torch.nn.functional.pad(a, (0, 0, 0, missing))


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64, copy=True).flatten(1)
