"""Training of the paper's Transformer in a client's own words alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Self, cast

import torch
from torch import Tensor, nn

from heterofl_flwr.data.dataset import Reading
from heterofl_flwr.nn.loss import class_mask, flatten_positions
from heterofl_flwr.nn.present_classes import PresentClasses
from heterofl_flwr.nn.transformer import Transformer
from heterofl_flwr.training.batches import count_steps
from heterofl_flwr.training.engines.structure import find_hook
from heterofl_flwr.training.options import TrainingJob, TrainOptions


class OwnWords:
    """A client's training with a vocabulary of its own words. The result is the same up to rounding.

    With WikiText2, a client has a ninth of the words. The masked loss has no gradient for the rows of the other words
    in the embedding and the decoder, so only weight decay changes them.

    Attributes
    ----------
    job
        The client, with a text in which words are numbered among its own. Train it in the context ``narrowed``.
    """

    def __init__(self, job: TrainingJob, options: TrainOptions, model: Transformer, present: Tensor) -> None:
        self._options, self._present = options, PresentClasses(present, options.mask_fill)
        words, decoder = self._present.classes, cast("nn.Linear", model.decoder[-1])
        tokens = torch.cat([words, words.new_tensor([len(present)])])  # [MASK] is the last token
        parameters = model.embedding.token.weight, decoder.weight, decoder.bias
        self._rows = list(zip(parameters, (tokens, words, words), strict=True))
        text = self._present.columns(job.split.inputs)
        reading = replace(cast("Reading", job.split.reading), hides_as=len(words))
        self.job = replace(job, split=replace(job.split, inputs=text, targets=text, reading=reading))

    @classmethod
    def find(cls, job: TrainingJob, options: TrainOptions) -> Self | None:
        """Return the training in own words, or None if it would be another training or no faster."""
        model, reading = job.model, job.split.reading
        penalties = options.proximal, job.penalty, job.quadratic, job.joint_loss
        if job.classes is None or options.mask_fill == "none" or any(penalties) or not isinstance(model, Transformer):
            return None
        is_own = getattr(model.forward, "__func__", None) is not Transformer.forward
        if is_own or type(model.decoder) is not nn.Sequential or type(model.decoder[-1]) is not nn.Linear:
            return None
        present = class_mask(job.classes, model.mask_token).to(job.split.inputs.device)
        is_plain = reading is not None and reading.hides_as == len(present) and not find_hook(model)
        if not is_plain or present.all() or not _holds(present, job.split.inputs):
            return None
        return cls(job, options, model, present)

    def compute(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a batch of own words, and a boolean tensor, True for correct predictions."""
        (logits,), targets = flatten_positions([self.job.model(inputs).float()], targets)  # (positions, own words)
        is_correct = self._present.predict(logits.detach()) == self._present.classes[targets]
        return self._present.loss(logits, targets), is_correct

    @contextmanager
    def narrowed(self) -> Iterator[None]:
        """Within this context, the model has the rows of own words alone. On exit, they are copied back.

        The other rows then have the weight decay of all steps.
        """
        homes = [parameter.data for parameter, _ in self._rows]
        for parameter, rows in self._rows:
            parameter.data = parameter.data.index_select(0, rows)
        try:
            yield
        finally:
            decay = self._decay(count_steps(self.job, self._options))
            for (parameter, rows), home in zip(self._rows, homes, strict=True):
                home.mul_(decay if parameter.requires_grad else 1.0).index_copy_(0, rows, parameter.data)
                parameter.data = home

    def _decay(self, steps: int) -> float:
        """Return the factor by which weight decay changes a parameter without gradients in ``steps`` steps."""
        options, value, momentum = self._options, 1.0, 0.0
        for _ in range(steps):
            momentum = options.momentum * momentum + options.weight_decay * value
            value -= options.learning_rate * momentum
        return value


def _holds(present: Tensor, text: Tensor) -> bool:
    """Return True if all tokens of a text are present words."""
    is_inside = (text >= 0) & (text < len(present))
    return bool(is_inside.all()) and bool(present[text].all())
