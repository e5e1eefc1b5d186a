"""The engine ``plain``: one client, one step after the other, the same bits each time."""

from collections.abc import Iterator, Sequence
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from heterofl_flwr.core.seeds import derive
from heterofl_flwr.data.augment import AUGMENTS
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import DataError, HeteroFLError
from heterofl_flwr.learn.batches import batch_rows
from heterofl_flwr.learn.masking import Masking
from heterofl_flwr.learn.model_state import channels_last, seeded
from heterofl_flwr.learn.options import TrainOptions
from heterofl_flwr.learn.results import TrainResult
from heterofl_flwr.nn.loss import masked_cross_entropy


class DivergedError(HeteroFLError):
    """The loss is no longer finite."""


def train_plain(
    model: nn.Module, split: Split, options: TrainOptions, classes: Sequence[int] | Tensor | None, seed: int
) -> TrainResult:
    """Train ``model`` in place on a split on its device (section 4: SGD with momentum, gradients clipped)."""
    if not len(split):
        raise DataError("there are no examples to train on")
    started = perf_counter()
    device = split.targets.device
    with seeded(derive(seed, "model"), device), channels_last(model):
        losses, sizes, correct = _run(model, split, options, Masking(classes, options.mask_fill), seed)
        model.zero_grad()  # frees the gradients
    seen = sum(sizes)
    weights = torch.tensor(sizes, dtype=torch.float64)
    loss = float((torch.cat(losses).cpu().double() * weights).sum() / seen)
    return TrainResult(len(split), loss, int(correct) / seen, len(sizes), perf_counter() - started)


def _run(
    model: nn.Module, split: Split, options: TrainOptions, masking: Masking, seed: int
) -> tuple[list[Tensor], list[int], Tensor]:
    """Return the losses of all steps, the number of examples of each, and the number of right answers."""
    step = _Step(model, options)
    model.train()
    generator = torch.Generator().manual_seed(derive(seed, "batches"))
    all_losses: list[Tensor] = []
    sizes: list[int] = []
    correct = torch.zeros((), dtype=torch.int64, device=split.targets.device)
    for _ in range(options.epochs):
        losses = []
        for inputs, targets in _batches(split, options, generator):
            logits = masking(model(inputs))
            loss = masked_cross_entropy(logits, targets)
            step.take(loss)
            losses.append(loss.detach())
            sizes.append(len(targets))
            correct += (logits.detach().argmax(1) == targets).sum()
        all_losses.append(torch.stack(losses))
        _check_finite(all_losses, options)  # once an epoch: reading a value waits for a GPU
    return all_losses, sizes, correct


def _batches(split: Split, options: TrainOptions, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch, shuffled."""
    order = torch.randperm(len(split), generator=generator).to(split.targets.device)
    vary = AUGMENTS[options.augment]
    for rows in batch_rows(order, options.batch_size):
        yield vary(split.inputs[rows], generator, split.black), split.targets[rows]


class _Step:
    """Backward, the pull of FedProx, clipping, and SGD with momentum, new for each client and round.

    SGD is torch's own function: the class ``torch.optim.SGD`` loads torch's compiler, which costs each process two
    seconds and 150 MB.
    """

    def __init__(self, model: nn.Module, options: TrainOptions) -> None:
        self.options = options
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.momentum = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.received = [parameter.detach().clone() for parameter in self.parameters] if options.proximal else []

    def take(self, loss: Tensor) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            for parameter, received in zip(self.parameters, self.received, strict=False):  # none without a pull
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - received, alpha=self.options.proximal)
            if self.options.clip:
                nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
            self._descend()

    def _descend(self) -> None:
        held = [number for number, parameter in enumerate(self.parameters) if parameter.grad is not None]
        sgd(
            [self.parameters[number] for number in held],
            [gradient for parameter in self.parameters if (gradient := parameter.grad) is not None],
            [self.momentum[number] for number in held],
            fused=True,
            lr=self.options.learning_rate,
            momentum=self.options.momentum,
            weight_decay=self.options.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def _check_finite(losses: Sequence[Tensor], options: TrainOptions) -> None:
    bad = (~losses[-1].isfinite()).nonzero()
    if len(bad):
        step = sum(map(len, losses[:-1])) + int(bad[0]) + 1
        raise DivergedError(
            f"the loss of step {step} is {float(losses[-1][bad[0]])} at learning rate {options.learning_rate:g}: "
            "lower it or clip the gradient; with mask_fill=-inf every target must be among the classes; and the "
            "inputs must be finite"
        )
