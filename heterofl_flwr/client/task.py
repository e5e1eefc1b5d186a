"""One message being answered: its model, its penalty and its reply, around the user's own training loop."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor, nn

from heterofl_flwr.client.instruction import Instruction
from heterofl_flwr.client.load_model import (
    IssuedModels,
    load_models,
    personal_state,
    read_received,
    sent_tensor,
    warn_once,
)
from heterofl_flwr.client.stages import StageRunner
from heterofl_flwr.client.state import STAGES, load_notes, load_tensors, save_notes, save_tensors
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.named_tensors import entries_under
from heterofl_flwr.core.exchanged import copy_exchanged
from heterofl_flwr.core.label_rows import Labels, whole_numbers
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.core.randomness import seed_torch
from heterofl_flwr.nn.build import check_build
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.penalty import Penalty
from heterofl_flwr.stages.client_stage import FULL_PRECISION, Outgoing
from heterofl_flwr.training.distilled_loss import Criterion, distilled_loss
from heterofl_flwr.transport import messages, packing


class Contents(NamedTuple):
    """Contents of a reply, before they become records of a message."""

    records: Mapping[str, ArrayRecord]
    config: Mapping[str, object]
    metrics: Mapping[str, float | Sequence[float]]
    num_examples: int


class Task:
    """One message being answered.

    Parameters
    ----------
    message : Message
        Instruction of the server, as the ``ClientApp`` gets it.
    context : Context
        The client's context. Layers that stay with the client, and the state of stages, are read from it and saved in
        it.
    build : Callable[[float], nn.Module]
        From a rate to the model, the same function as the server's. The global random generators are afterwards as
        they were before, also if it draws.
    seed_torch : bool
        Whether each new model seeds torch's global generators with ``seed``, so that equal runs are equal. Never set it
        with code that draws noise for privacy from them, as Opacus does: the server and the other clients know the
        seed, and can subtract the noise.

    Attributes
    ----------
    message, context, build
        The arguments.
    instruction : Instruction
        The message's config, parsed.
    penalty_used : bool
        Whether ``penalty`` or ``loss`` was called. Set it where the loop adds the same penalty itself.
    total_step : float
        Sum of the learning rates of the local steps, for SCAFFOLD: ``penalty`` and ``loss`` add the rate that the
        server sent. Set it if a step has several calls, or another learning rate.

    Examples
    --------
    ::

        answer_queries(app, build, data=load)  # once

        @app.train()
        def train(message, context):
            task = Task(message, context, build)
            model = task.model()
            ...  # the user's own loop, with a new optimizer
            return task.reply(model, num_examples=n, labels=classes, metrics={"train-loss": loss})
    """

    def __init__(self, message: Message, context: Context, build: Build, *, seed_torch: bool = False) -> None:
        _check_arguments(message, context, build)
        self.message, self.context, self.build = message, context, build
        self.instruction = Instruction.of(message)
        self.penalty_used = False
        self.total_step = 0.0
        self._seed_torch = seed_torch
        self._issued = IssuedModels()
        self._is_open = True
        # No reference to the task: a cycle would keep the message alive until the garbage collector runs.
        self._received = cache(partial(read_received, message))

    @cached_property
    def _saved(self) -> dict[str, Tensor]:
        """Tensors that this client has saved in earlier messages."""
        return load_tensors(self.context, self.instruction) or {}

    @cached_property
    def _stages(self) -> StageRunner:
        """Client stages of the instruction."""
        tensors = entries_under(STAGES, self._saved)
        record = messages.array_records(self.message.content).get(messages.BROADCAST)
        broadcast = {} if record is None else packing.read_tensors(record)
        notes, node_config = load_notes(self.context), self.context.node_config
        return StageRunner(self.instruction, self._received, broadcast, tensors, notes, node_config)

    @property
    def rate(self) -> float:
        """Rate of the model."""
        return self.instruction.rate

    @property
    def seed(self) -> int:
        """Seed that is a function of the run's seed, the round and the client."""
        return self.instruction.seed

    @property
    def work(self) -> float:
        """Fraction of local steps to run; below 1 only on simulated devices."""
        return self.instruction.work

    @property
    def config(self) -> ConfigRecord:
        """Config of the message, with what the server's ``train_config`` or ``evaluate_config`` holds."""
        return self.instruction.config

    def model(self, like: nn.Module | None = None) -> nn.Module:
        """Return a new model at the message's rate, loaded with its parameters and the client's own layers.

        For an evaluation, batch norm has the static moments in the message or, without any, normalises by batch.

        Parameters
        ----------
        like : nn.Module | None
            Another task's model, still untrained: it is copied, and the message is not read.
        """
        self._check_open()
        model = next(self._load())[1] if like is None else copy_exchanged(like)
        self._issued.add(model)
        return model

    def models(self) -> Iterator[tuple[float, nn.Module]]:
        """Yield each rate to evaluate with its model, the largest first, cut from the parameters in the message."""
        self._check_open()
        yield from self._load()

    def penalty(self, model: nn.Module) -> Tensor | float:
        """Return the term to add to the loss of each batch, of FedProx or a stage such as FedDyn; 0 without them.

        Call it once in each step.
        """
        self.penalty_used = True
        self.total_step += self.instruction.learning_rate
        penalty = self._stages.penalty
        return penalty(model) if penalty else 0.0

    @property
    def stage_penalty(self) -> Penalty:
        """Penalty of the stages, without FedProx's."""
        return self._stages.own_penalty

    def loss(
        self,
        model: nn.Module,
        batch: tuple[object, Tensor],
        criterion: Criterion,
        *,
        labels: Iterable[int] | None = None,
        label_share: float = 0.25,
        weight: float = 1.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return the loss of a batch with in-place distillation and the penalty.

        The smaller models inside the client's learn from its posterior. At the smallest level, and for slices that
        move, there are none: the loss is ``criterion(model(inputs), targets) + penalty(model)``. A step of the largest
        of four levels takes about twice as long.

        Parameters
        ----------
        model : nn.Module
            The model that ``model()`` returned.
        batch : tuple[object, Tensor]
            The model's input (a tensor, a tuple of arguments, or a mapping of named ones), and the targets.
        criterion : Callable[[Tensor, Tensor], Tensor]
            From logits, (examples, classes), and targets to a loss.
        labels : Iterable[int] | None
            Classes of this client's data: all other logits are set to 0, also for ``criterion``. None: all classes.
        label_share : float
            Weight of the criterion in the loss of a smaller model; the rest is the divergence from the posterior.
        weight : float
            Weight of the smaller models' losses; 0 leaves them out.
        temperature : float
            Divides logits before they become posteriors; the divergence is multiplied by its square.
        """
        self._issued.check(model, "task.loss")
        smaller = (rate for rate in self.instruction.rates if rate < self.rate)
        loss = distilled_loss(
            model,
            batch,
            criterion,
            inner=self._issued.inner_widths(model, self.build, smaller) if weight else (),
            labels=labels,
            label_share=label_share,
            weight=weight,
            temperature=temperature,
        )
        return loss + self.penalty(model)

    def reply(
        self,
        model: nn.Module | None = None,
        *,
        num_examples: int,
        labels: Iterable[int] | Mapping[str, Iterable[int]] | None = None,
        metrics: Mapping[str, float | Sequence[float]] | None = None,
        capacity: str | float | None = None,
    ) -> Message:
        """Return the reply, and close the task; the parameters have the form that the server asked for.

        Parameters
        ----------
        model : nn.Module | None
            The trained model; none in an evaluation. Its parameters travel, its buffers do not.
        num_examples : int
            Number of examples used. 0: nothing of this reply counts, and the state of stages stays as it was.
        labels : Iterable[int] | Mapping[str, Iterable[int]] | None
            Classes of this client's data, in training: rows of the classifier count for them alone. None: all classes.
            Of several heads, the classes of each by its layer or parameter: ``{"digits": [1, 2], "months": [11]}``.
        metrics : Mapping[str, float | Sequence[float]] | None
            Numbers to report. Lists have no mean: only the server's own function of metrics sees them.
        capacity : str | float | None
            Level or rate, if what this node can hold has changed; it counts from the next round.
        """
        contents = self._contents(model, num_examples, labels, metrics or {}, capacity)
        reported = messages.new_metrics(contents.metrics, contents.num_examples)
        return messages.answer(self.message, contents.config, {messages.METRICS: reported, **contents.records})

    def _contents(
        self,
        model: nn.Module | None,
        num_examples: int,
        labels: Iterable[int] | Mapping[str, Iterable[int]] | None,
        metrics: Mapping[str, float | Sequence[float]],
        capacity: str | float | None,
    ) -> Contents:
        """Return the contents of the reply, which ``reply`` packs, and close the task."""
        self._check_open()
        classes = _read_classes(labels)
        config: dict[str, object] = {} if capacity is None else {messages.CAPACITY: rate_of(capacity)}
        records: Mapping[str, ArrayRecord] = {}
        if self.instruction.is_evaluation and model is not None:
            raise ConfigError("a reply to an evaluation carries no parameters: leave out the model")
        if self.instruction.is_training or model is not None:
            outgoing = self._update(model, classes, num_examples, metrics)
            records = packing.pack_trained(outgoing.tensors, outgoing.scales, outgoing.form)
            classes, num_examples, metrics = outgoing.labels, outgoing.num_examples, outgoing.metrics
            config |= outgoing.fields
            if outgoing.form != FULL_PRECISION:
                config[messages.UPLOAD] = outgoing.form
        if isinstance(classes, Mapping):
            config |= {f"{messages.HEAD_LABELS}{head}": list(numbers) for head, numbers in classes.items()}
        elif classes is not None:
            config[messages.LABELS] = list(classes)
        self._is_open = False
        return Contents(records, config, metrics, num_examples)

    def keep(self, model: nn.Module | None) -> None:
        """Save the layers that stay with the client, and the state of stages; ``reply`` with a model does it too."""
        personal = {
            name: sent_tensor(parameter)
            for name, parameter in self._issued.parameters_of(model).items()
            if not self.instruction.travels(name)
        }
        stages = {f"{STAGES}{name}": tensor for name, tensor in self._stages.state.items()}
        if personal or stages:
            save_tensors(self.context, self.instruction, personal | stages)

    def _load(self) -> Iterator[tuple[float, nn.Module]]:
        """Yield each rate of the instruction with its model, the largest first."""
        instruction, state = self.instruction, self._received()
        if instruction.is_partial:
            saved = {name: tensor for name, tensor in self._saved.items() if not name.startswith(STAGES)}
            state = {**personal_state(instruction, self.build, saved), **state}
        moments = messages.array_records(self.message.content).get(messages.MOMENTS)
        levels = messages.array_records(self.message.content).get(messages.LEVELS)
        level_tensors = {} if levels is None else packing.read_tensors(levels)
        for rate, model in load_models(instruction, self.build, state, moments, level_tensors):
            if self._seed_torch:
                seed_torch(self.seed)
            yield rate, model
            del model  # the caller alone decides how long it lives

    def _update(
        self,
        model: nn.Module | None,
        classes: Labels | None,
        num_examples: int,
        metrics: Mapping[str, float | Sequence[float]],
    ) -> Outgoing:
        """Return the update to send, after the client stages of the instruction; save what stays here."""
        parameters = {
            name: parameter
            for name, parameter in self._issued.parameters_of(model).items()
            if self.instruction.travels(name)
        }
        if num_examples:
            self._check_penalty()
        tensors = {name: self._convert(name, parameter) for name, parameter in parameters.items()}
        if num_examples and tensors and not self._differs(tensors):
            warn_once(
                "this client's parameters are those that it received: nothing was trained. Make a new optimizer for "
                "each task.model(); one of an earlier round trains that round's model"
            )
        outgoing = self._stages.on_update(
            Outgoing(tensors=tensors, labels=classes, num_examples=num_examples, metrics=metrics), self.total_step
        )
        self.keep(model)
        if self._stages.notes:
            save_notes(self.context, self._stages.notes)
        return outgoing

    def _convert(self, name: str, parameter: Tensor) -> Tensor:
        """Return a copy of a parameter in the type that was received, as the server expects it."""
        expected = self._received()[name].dtype
        if parameter.dtype != expected:
            warn_once(f"parameters trained in {parameter.dtype} are sent in {expected}, the type that was received")
        return sent_tensor(parameter).to(expected)

    def _differs(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether training has changed any tensor; most often the first shows it."""
        received = self._received()
        return any(not torch.equal(tensor, received[name]) for name, tensor in tensors.items())

    def _check_open(self) -> None:
        if not self._is_open:
            raise ConfigError("this task has been answered: make a new Task for each message, and reply to it once")

    def _check_penalty(self) -> None:
        """Raise an error, or warn, if the loss should have had a penalty that was never asked for."""
        if self.penalty_used or self._stages.penalty is None:
            return
        advice = "add task.penalty(model) to the loss of each batch"
        if names := self._stages.penalising:
            raise ConfigError(f"{', '.join(names)}: the strategy adds a penalty to the clients' loss, so {advice}")
        warn_once(
            f"proximal_mu is {self.instruction.proximal_mu:g}, and the loss has no penalty: {advice}, or set "
            f"task.penalty_used = True where the loop adds it itself"
        )


def _read_classes(labels: Iterable[int] | Mapping[str, Iterable[int]] | None) -> Labels | None:
    """Return the classes of a reply, of each head where they are by head; raise an error for other values."""
    if isinstance(labels, Mapping):
        return {head: whole_numbers(classes) for head, classes in labels.items()}
    return None if labels is None else whole_numbers(labels)


def _check_arguments(message: object, context: object, build: object) -> None:
    """Raise ``ConfigError`` if the arguments of a task are of other types, as when two are swapped."""
    for name, value, expected in (("message", message, Message), ("context", context, Context)):
        if not isinstance(value, expected):
            raise ConfigError(
                f"{name} is of type {type(value).__name__}; expected a {expected.__name__}: Task(message, context, "
                f"build)"
            )
    check_build(build)  # type: ignore[arg-type]
