"""In-place distillation: smaller models inside a client's model learn from its outputs."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.nn.execution import call
from heterofl_flwr.nn.nested import InnerWidth
from heterofl_flwr.training.joint_losses import nested_loss
from heterofl_flwr.training.step import Masking

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Function of logits and targets that returns a loss, such as ``nn.CrossEntropyLoss()``."""


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
