"""In-place distillation: smaller models inside a client's model learn from its outputs."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.nn.execution import call
from heterofl_flwr.nn.inner_widths import InnerWidth
from heterofl_flwr.nn.loss import masked_cross_entropy
from heterofl_flwr.training.exit_losses import finite_logits, soft_targets
from heterofl_flwr.training.fedh2l import divergence
from heterofl_flwr.training.step import Masking

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Function of logits and targets that returns a loss, such as ``nn.CrossEntropyLoss()``."""


def nested_loss(
    logits: Sequence[Tensor],
    targets: Tensor,
    *,
    weight: float = 1.0,
    temperature: float = 1.0,
    label_share: float = 0.0,
    criterion: Callable[[Tensor, Tensor], Tensor] = masked_cross_entropy,
) -> Tensor:
    """Return the loss of in-place distillation (Yu and Huang, ICCV 2019): a model teaches smaller models inside it.

    The last tensor of ``logits`` is from the client's model, the others are from the smaller models. The caller masks
    absent classes in all tensors. The loss is ``CE + weight * sum_i (label_share * CE_i + (1 - label_share) *
    T^2 KL(p, p_i))``. CE is ``criterion`` of the client's model and CE_i of smaller model i; p and p_i are their class
    probabilities at temperature T. No gradient flows through p. By default, with one smaller model, this is
    FjORD's loss (Horvath et al., NeurIPS 2021, section 3.2).
    """
    teacher = soft_targets(logits[-1], temperature)[None]
    total = criterion(logits[-1], targets)
    for inner in logits[:-1]:
        if label_share:
            total = total + weight * label_share * criterion(inner, targets)
        if label_share < 1:
            distance = temperature**2 * divergence(finite_logits(inner), teacher, temperature)
            total = total + weight * (1 - label_share) * distance
    return total


def distilled_loss(
    model: nn.Module,
    batch: tuple[object, Tensor],
    criterion: Criterion,
    *,
    inner: Sequence[InnerWidth],
    labels: Iterable[int] | None,
    label_share: float,
    weight: float,
    temperature: float,
) -> Tensor:
    """Return the ``nested_loss`` of a model and of the smaller models inside it.

    ``inner`` has the smaller models, the smallest first. If it is empty, the loss is the ``criterion`` of the model
    alone. For the other arguments see ``Task.loss``.
    """
    inputs, targets = batch
    masking = Masking(None if labels is None else sorted(labels), "zero")
    name = type(model).__name__
    if not inner:
        return criterion(_read_logits(call(model, inputs), name, masking), targets)
    copies = partial(tree_map_only, Tensor, Tensor.clone, inputs)  # a model may change its inputs in place
    logits = _read_logits(call(model, copies()), name, masking)
    inner_logits = [_read_logits(width.output(model, copies()), name, masking) for width in inner]
    return nested_loss(
        [*inner_logits, logits],
        targets,
        criterion=criterion,
        weight=weight,
        temperature=temperature,
        label_share=label_share,
    )


def _read_logits(output: object, name: str, masking: Masking) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 2:
        form = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(f"the output of {name} is {form}; expected logits, (examples, classes)")
    return masking(output)
