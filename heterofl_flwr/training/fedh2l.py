"""Distillation among clients (FedH2L)."""

from itertools import chain, count

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heterofl_flwr.common.errors import ConfigError, ReplyError
from heterofl_flwr.common.options import Count, Flag, Natural, NotNegative, Positive, group
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.nn.execution import evaluating, to_double
from heterofl_flwr.nn.loss import masked_cross_entropy
from heterofl_flwr.training.batches import training_batches
from heterofl_flwr.training.device import seeded
from heterofl_flwr.training.engines.plain import DivergedError
from heterofl_flwr.training.options import TrainingJob, TrainOptions
from heterofl_flwr.training.step import Masking, ParameterSGD, compute_loss


def join_gradients(private: Tensor, shared: Tensor) -> Tensor:
    """Return the vector that conflicts with neither of two gradients and is nearest to their sum.

    Vectors conflict if their dot product is negative. If the sum conflicts with a gradient, the sum's component along
    this gradient is removed.
    """
    gradient = private + shared
    for part in (private, shared):
        if part.dot(gradient) < 0:
            # Normalised and in double precision, because the two gradients may be nearly parallel.
            along, exact = to_double(part), to_double(gradient)
            unit = (along / along.norm())[None]  # (1, parameters)
            nearest: Tensor = exact - (unit @ exact) / (unit @ unit.T)[0] @ unit
            return nearest.to(gradient)
    return gradient


TOLERANCE = 1e-3
"""Largest allowed deviation of a posterior's sum from 1."""


@group
class DistillOptions:
    """Options of distillation among clients (FedH2L), and between exits or inner widths of a model."""

    seed_size: Count = 1000
    """number of examples in the seed set, which every client has"""
    seed_batch: Count = 100
    """number of examples in the seed batch of a round, drawn anew from the seed set for each round"""
    steps: Natural = 10
    """number of a client's steps on the seed batch in a round; each also uses a new batch of the client's data"""
    temperature: Positive = 1.0
    """divisor of the logits before the softmax, also in the losses of exits and inner widths"""
    weight: NotNegative = 1.0
    """weight of the mean divergence from the peers, and of the divergences between exits or inner widths"""
    labels: Flag = True
    """whether the loss uses the labels of the seed set"""

    def __post_init__(self) -> None:
        if self.seed_batch > self.seed_size:
            raise ConfigError(f"seed_batch is {self.seed_batch}, expected 1 up to seed_size, {self.seed_size}")


@torch.no_grad()
def posteriors(model: nn.Module, inputs: Tensor, temperature: float = 1.0) -> Tensor:
    """Return a model's class probabilities at ``temperature``, of shape (examples, classes), in evaluation mode."""
    with evaluating(model):
        probabilities: Tensor = (model(inputs).float() / temperature).softmax(1)
    return probabilities


def check_posteriors(posterior: Tensor, shape: tuple[int, int], sender: str) -> Tensor:
    """Return ``posterior``; raise ``ReplyError`` unless it is float32 of ``shape`` and each row is a distribution."""
    if tuple(posterior.shape) != shape or posterior.dtype != torch.float32:
        what = f"{posterior.dtype} of shape {tuple(posterior.shape)}"
        raise ReplyError(f"{sender} sent posteriors that are {what}, expected torch.float32 of shape {shape}")
    if not (posterior.min() >= 0 and (posterior.sum(1) - 1).abs().max() <= TOLERANCE):  # NaN fails this test
        sums = posterior.sum(1)
        raise ReplyError(
            f"{sender} sent posteriors that are no distributions: the least entry is {float(posterior.min()):g}, "
            f"rows sum to {float(sums.min()):g} to {float(sums.max()):g}; expected entries from 0 up that sum to 1"
        )
    return posterior


def divergence(logits: Tensor, peers: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the Kullback-Leibler divergence KL(peer, client), averaged over peers and examples.

    Parameters
    ----------
    logits : Tensor
        Logits of this client, of shape (examples, classes).
    peers : Tensor
        Class probabilities of its peers at the same temperature, of shape (peers, examples, classes).
    temperature : float
        Number by which logits are divided before softmax.
    """
    log_posterior = (logits / temperature).log_softmax(1).expand_as(peers)
    return F.kl_div(log_posterior, peers, reduction="none").sum(2).mean()


def learn_from_peers(
    job: TrainingJob,
    seeds: tuple[Tensor, Tensor],
    peers: Tensor,
    options: TrainOptions,
    distill: DistillOptions,
) -> float:
    """Train a client's model in place; return the model's divergence from the peers before the first step.

    In each step, ``join_gradients`` joins the gradient on a batch of the client's data and the gradient on the seed
    batch. The loss on the seed batch is the weighted divergence from the peers, which is 0 without peers. If
    ``distill.labels`` is true, the cross entropy is added. Raise ``DivergedError`` if a loss is not finite.

    Parameters
    ----------
    job : TrainingJob
        The client. It runs the fraction ``step_share`` of ``distill.steps``.
    seeds : tuple[Tensor, Tensor]
        Inputs and labels of the seed batch, on the model's device.
    peers : Tensor
        The peers' class probabilities on the seed batch, of shape (peers, examples, classes).
    options, distill : TrainOptions, DistillOptions
        Options of a training step, and of the distillation.
    """
    model, masking = job.model.train(), Masking(job.classes, options.mask_fill)
    sgd = ParameterSGD(model.parameters(), options)
    generator = torch.Generator().manual_seed(derive(job.seed, "seed-batches"))
    batches = chain.from_iterable(training_batches(job.split, options, generator) for _ in count())
    steps, initial = job.limit_steps(distill.steps), 0.0

    def gradient(loss: Tensor) -> Tensor:
        parts = torch.autograd.grad(loss, sgd.parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    with seeded(derive(job.seed, "seed-model"), seeds[0].device):
        if not steps:
            with torch.no_grad():
                return float(_seed_loss(model(seeds[0].clone()).float(), seeds[1], peers, distill)[1])
        for number in range(steps):
            private, _ = compute_loss(model, *next(batches), masking)
            private_gradient = gradient(private)
            shared, distance = _seed_loss(model(seeds[0].clone()).float(), seeds[1], peers, distill)
            shared_gradient = gradient(shared)
            if not bool((private + shared).isfinite()):
                raise DivergedError(
                    f"the loss of seed step {number + 1} is {float((private + shared).detach())} at "
                    f"learning rate {options.learning_rate:g}: lower it, or the weight of the divergence"
                )
            initial = float(distance.detach()) if number == 0 else initial
            joined = join_gradients(private_gradient, shared_gradient)
            parts = joined.split([parameter.numel() for parameter in sgd.parameters])
            sgd.step([part.view(value.shape) for part, value in zip(parts, sgd.parameters, strict=True)])
    return initial


def _seed_loss(logits: Tensor, labels: Tensor, peers: Tensor, distill: DistillOptions) -> tuple[Tensor, Tensor]:
    """Return the loss on the seed batch, and the divergence from the peers."""
    distance = 0 * logits.sum()
    if len(peers):
        distance = divergence(logits, peers, distill.temperature)
    loss = distill.weight * distill.temperature**2 * distance
    if distill.labels:
        loss = loss + masked_cross_entropy(logits, labels)
    return loss, distance


def seed_set(split: Split, size: int, classes: int, seed: int) -> Tensor:
    """Return the sorted indices of ``size`` random examples: equally many of each class, up to a difference of 1.

    If ``split`` has too few examples of a class, return all of them, and more examples of the other classes.
    """
    if not 0 < size <= len(split):
        raise ConfigError(f"a seed set of {size} examples is not possible: expected 1 to {len(split)}")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(derive(seed, "seed-set")))
    targets = split.targets.cpu()[order]
    # Sort by an example's number in its class, so that each class contributes one example before any contributes two.
    place = F.one_hot(targets, classes).cumsum(0).gather(1, targets[:, None])[:, 0]
    return order[place.argsort(stable=True)[:size]].sort().values
