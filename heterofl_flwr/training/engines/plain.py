"""The engine ``plain``: clients train one after the other, reproducibly bit for bit."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from heterofl_flwr.common.errors import HeteroFLError
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.nn.memory_format import in_channels_last
from heterofl_flwr.training.batches import training_epochs
from heterofl_flwr.training.device import give_back_gaps, seeded
from heterofl_flwr.training.options import TrainingJob, TrainOptions, TrainResult
from heterofl_flwr.training.own_words import OwnWords
from heterofl_flwr.training.step import Masking, ParameterSGD, compute_loss

Compute = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function of a batch's inputs and targets that returns its mean loss, and True for each correct prediction."""

STEPS_BETWEEN_GAPS = 50
"""Number of steps between two calls of ``give_back_gaps``, which returns free memory to the system."""


class DivergedError(HeteroFLError):
    """Error for a training loss that is not finite."""


def train_plain(jobs: Sequence[TrainingJob], options: TrainOptions) -> list[TrainResult]:
    """Train clients one after the other with SGD (section 4 of the paper)."""
    return [_train(job, options) for job in jobs]


def _train(job: TrainingJob, options: TrainOptions) -> TrainResult:
    if words := OwnWords.find(job, options):
        with words.narrowed():
            return _run_steps(words.job, options, words.compute)
    masking = Masking(job.classes, options.mask_fill)
    compute = partial(compute_loss, job.model, masking=masking, joint_loss=job.joint_loss)
    return in_channels_last(job.model, partial(_run_steps, job, options, compute))


def _run_steps(job: TrainingJob, options: TrainOptions, compute: Compute) -> TrainResult:
    device, model = job.split.targets.device, job.model.train()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    epochs: list[Tensor] = []  # for each epoch, the losses of its steps
    sizes: list[int] = []
    with seeded(derive(job.seed, "model"), device):
        sgd = ParameterSGD(model.parameters(), options, job.quadratic)
        for batches in training_epochs(job, options):
            losses = []
            for inputs, targets in batches:
                loss, hits = compute(inputs, targets)
                sgd.minimise(loss + job.penalty() if job.penalty else loss)
                correct.add_(hits.sum())
                losses.append(loss.detach())
                sizes.append(targets.numel())
                if len(sizes) % STEPS_BETWEEN_GAPS == 0:
                    give_back_gaps()
            epochs.append(torch.stack(losses))
            check_losses(epochs[-1], len(sizes) - len(losses), options)
        return build_result(job, epochs, sizes, int(correct))


def check_losses(losses: Tensor, before: int, options: TrainOptions) -> None:
    """Raise ``DivergedError`` if a loss is not finite; ``before`` is the number of steps before these losses."""
    # On a GPU, reading a loss waits until all earlier work is done. Therefore, many losses are checked together.
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise DivergedError(
            f"the loss of step {before + int(bad[0]) + 1} is {float(losses[bad[0]])} at learning rate "
            f"{options.learning_rate:g}: lower it or clip the gradient; with mask_fill=-inf every target must be among "
            f"the classes; and the inputs must be finite"
        )


def build_result(job: TrainingJob, losses: Sequence[Tensor], sizes: Sequence[int], correct: int) -> TrainResult:
    """Return a client's result from its losses, batch sizes and number of correct predictions."""
    seen = sum(sizes)
    weights = torch.tensor(sizes, dtype=torch.float64)
    loss = float((torch.cat(list(losses)).cpu().double() * weights).sum() / seen)
    return TrainResult(len(job.split), loss, correct / seen, len(sizes))
