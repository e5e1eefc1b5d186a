"""FIARSE's masks of single entries (Wu et al., NeurIPS 2024), to compare with its structured form, ``method=fiarse``.

A client of rate r uses the r**2 weights of each layer that are largest in magnitude, wherever they are. So it holds,
computes and exchanges the whole model: single entries make a slice sparse, not small. Biases and norms are not masked.

The authors' code has one threshold for all layers, or one for each stage of a ResNet, and masks biases of linear layers
too. Its mask has booleans, through which torch passes no gradient, so the paper's factor of the gradient has no effect.

The block ``entries`` of ``conf/experiment/family-cifar10.yaml`` trains this model.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from heterofl_flwr.core.aggregation import Aggregation
from heterofl_flwr.nn.models import CNN
from heterofl_flwr.stages.client_stage import State
from heterofl_flwr.stages.server_stage import HolderCounts, Needs, RoundContext, ServerStage, Update


class LargestEntries(torch.autograd.Function):
    """The entries of a weight from a threshold on; others are 0.

    The gradient is the paper's (threshold-controlled biased gradient): the gradient of an entry w
    of the mask is multiplied by ``1 + 2 t |w| / (|w| + t)**2``; other entries get none.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, threshold: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, threshold)
        return torch.where(weight.abs() >= threshold, weight, 0)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        weight, threshold = ctx.saved_tensors
        size = weight.abs()
        factor = 1 + 2 * threshold * size / (size + threshold).square()
        return torch.where(size >= threshold, gradient * factor, 0), None


class EntryMasked(nn.Module):
    """A whole model of which each layer uses a share of its weights.

    In training, thresholds stay as in the first step, so a weight that falls below its threshold leaves the mask.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        super().__init__()
        self.model, self.share = model, share
        self.label_rows = tuple(f"model.{name}" for name in getattr(model, "label_rows", ()))
        self._thresholds: dict[str, Tensor] = {}

    def forward(self, inputs: Tensor) -> Tensor:
        weights = {name: weight for name, weight in self.model.named_parameters() if weight.dim() > 1}
        if not (self.training and self._thresholds):
            self._thresholds = {name: threshold(weight, self.share) for name, weight in weights.items()}
        masked = {name: LargestEntries.apply(weight, self._thresholds[name]) for name, weight in weights.items()}
        output: Tensor = functional_call(self.model, masked, (inputs,))
        return output


def threshold(weight: Tensor, share: float) -> Tensor:
    """Return the smallest magnitude among the ``share`` of entries with the largest magnitudes."""
    number = max(1, int(weight.numel() * share))
    return weight.detach().abs().flatten().kthvalue(weight.numel() - number + 1).values


def cifar10(rate: float) -> nn.Module:
    """Return the CNN of ``family-cifar10``."""
    return EntryMasked(CNN(channels=3, hidden=(16, 32, 64, 128)), rate**2)


class MaskedMean(ServerStage):
    """The mean of each weight over the clients whose masks have it."""

    needs = Needs(counting_mean=True)

    def __init__(self) -> None:
        self._round = 0

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Reset weights outside of the client's mask to their received values; weight decay has changed them."""
        if context.server_round != self._round:
            zeros = {name: torch.zeros_like(tensor) for name, tensor in context.state.items()}
            self._shares = Aggregation(zeros, context.rows, extra_rows=context.extra_rows)
            self._round, self._masks = context.server_round, dict[float, State]()
        if update.rate not in self._masks:
            self._masks[update.rate] = {
                name: (tensor.abs() >= threshold(tensor, update.rate**2)) | (tensor.dim() < 2)
                for name, tensor in context.state.items()
            }
        mask = self._masks[update.rate]
        kept = {name: torch.where(mask[name], new, context.state[name]) for name, new in update.tensors.items()}
        return replace(update, tensors=kept)

    def on_added(self, update: Update, context: RoundContext) -> None:
        """Count the client in the entries of its mask."""
        mask = {name: kept.to(context.state[name]) for name, kept in self._masks[update.rate].items()}
        self._shares.add(update.plan, mask, labels=update.labels, weight=update.weight)

    def on_mean(self, new: State, holders: HolderCounts, context: RoundContext) -> State:
        """Divide the mean change by the share of the clients whose masks have the entry."""
        shares, held = self._shares.result(), context.state
        means = {name: old + (new[name] - old) / shares[name] for name, old in held.items()}
        return {name: torch.where(shares[name] > 0, mean, held[name]) for name, mean in means.items()}
