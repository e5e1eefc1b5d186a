"""``Task``: a message that a client answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor, nn

from heterofl_flwr.client.imports import check_imports
from heterofl_flwr.client.instruction import Instruction
from heterofl_flwr.client.issued_models import IssuedModels
from heterofl_flwr.client.load_model import (
    load_models,
    personal_state,
    read_record,
    sent_tensor,
)
from heterofl_flwr.client.node_config import new_capacity
from heterofl_flwr.client.outgoing import (
    Contents,
    check_penalty,
    check_types,
    labels_config,
    read_classes,
    trained_tensors,
    warn_if_unchanged,
)
from heterofl_flwr.client.stages import StageRunner
from heterofl_flwr.client.state import STAGES, load_tensors, save_notes, save_tensors
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.named_tensors import entries_under
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.randomness import seed_torch
from heterofl_flwr.federation.round_record import host_log
from heterofl_flwr.nn.build import check_build
from heterofl_flwr.nn.models import Build
from heterofl_flwr.stages.client_stage import FULL_PRECISION, Outgoing
from heterofl_flwr.training.inplace_distillation import Criterion, distilled_loss
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.arrays import pack_trained
from heterofl_flwr.transport.compat import runs_on_node


class Task:
    """A message of the server that a client answers.

    Parameters
    ----------
    message : Message
        The message that the ``ClientApp`` received.
    context : Context
        The client's context. It stores personal parameters and the state of stages.
    build : Callable[[float], nn.Module]
        Function of a rate that returns the model. The server uses the same function.
    seed_torch : bool
        Whether torch's global generators are seeded with ``seed`` after a model is loaded, so that runs can be
        repeated exactly. Leave it False if these generators also draw privacy noise, as in Opacus: the server
        knows the seed.

    Attributes
    ----------
    instruction : Instruction
        The message's config, parsed.
    penalty_used : bool
        Whether ``penalty`` or ``loss`` was called. Set it to True if your training loop computes and adds the
        penalty without these methods.
    total_step : float
        Sum of the learning rates of the local steps, for SCAFFOLD. Each call of ``penalty`` or ``loss`` adds the
        learning rate that the server sent. Set the sum yourself if a step calls these methods more than once, or if
        its learning rate differs from the learning rate that the server sent.
    """

    def __init__(self, message: Message, context: Context, build: Build, *, seed_torch: bool = False) -> None:
        check_types(("message", message, Message), ("context", context, Context))
        check_build(build)
        self.message, self.context, self.build = message, context, build
        self.instruction = Instruction.of(message)
        self.penalty_used, self.total_step = False, 0.0
        self._added_by = ""  # the method that the loop calls for the penalty
        self._seed_torch = seed_torch
        self._issued = IssuedModels()
        self._is_open = True
        # No reference to the task: a cycle would keep the message alive until the garbage collector runs.
        self._received = cache(partial(read_record, message, messages.ARRAYS))
        if runs_on_node():  # not in simulations, which would log this for each client
            server_round, kind, level = self.instruction.server_round, self.instruction.kind, level_name(self.rate)
            host_log.info("round %d: %s at level %s (rate %g)", server_round, kind, level, self.rate)

    @cached_property
    def _saved(self) -> dict[str, Tensor] | None:
        return load_tensors(self.context, self.instruction)

    @cached_property
    def _stages(self) -> StageRunner:
        broadcast = read_record(self.message, messages.BROADCAST)
        tensors = None if self._saved is None else entries_under(STAGES, self._saved)
        return StageRunner(self.instruction, self._received, broadcast, tensors, self.context)

    @property
    def rate(self) -> float:
        """Rate of the model."""
        return self.instruction.rate

    @property
    def seed(self) -> int:
        """Random seed of this run, round and client."""
        return self.instruction.seed

    @property
    def work(self) -> float:
        """Fraction of local steps to run; below 1 only on simulated devices."""
        return self.instruction.work

    @property
    def config(self) -> ConfigRecord:
        """Config of the message, with the server's ``train_config`` or ``evaluate_config``."""
        return self.instruction.config

    def model(self) -> nn.Module:
        """Return a new model at the message's rate, with the received parameters and the client's personal parameters.

        In an evaluation, batch norm uses the static moments in the message. If the message has none, batch norm uses
        the statistics of each batch.
        """
        self._check_open()
        _, model = next(self._load())
        self._issued.add(model)
        return model

    def models(self) -> Iterator[tuple[float, nn.Module]]:
        """Yield pairs (rate, model) for the rates in ``instruction.rates``, the largest first."""
        self._check_open()
        yield from self._load()

    def penalty(self, model: nn.Module) -> Tensor | float:
        """Return the penalty to add to the loss of a batch; 0 if the run uses no penalty.

        The penalty is the sum of the terms of FedProx and of stages such as FedDyn. Call this method once in each step,
        or use ``loss``.
        """
        return self._penalty(model, "task.penalty")

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
        """Return the loss of a batch, including in-place distillation and the penalty.

        In-place distillation also trains the smaller models inside the client's model. They learn to match the output
        probabilities of the client's model. There are no smaller models at the smallest level, with a slice rule that
        moves slices, or with ``by_level`` (see ``Slicing``). The loss is then ``criterion(model(inputs), targets) +
        penalty(model)``. With four levels, distillation makes a step of the largest model take about twice as long.

        Parameters
        ----------
        model : nn.Module
            The model that ``model()`` returned.
        batch : tuple[object, Tensor]
            The model's input (a tensor, a tuple of arguments, or a mapping of keyword arguments), and the targets.
        criterion : Callable[[Tensor, Tensor], Tensor]
            Function of logits of shape (examples, classes) and targets that returns the loss.
        labels : Iterable[int] | None
            Classes of this client's data; None: all classes. Logits of other classes are set to 0.
        label_share : float
            Weight of ``criterion`` in the loss of a smaller model. The divergence from the client's model has the
            weight ``1 - label_share``.
        weight : float
            Weight of the smaller models' losses; 0: no in-place distillation.
        temperature : float
            Divisor of the logits before the softmax. The divergence is multiplied by ``temperature ** 2``.
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
        return loss + self._penalty(model, "task.loss")

    def _penalty(self, model: nn.Module, caller: str) -> Tensor | float:
        if self._added_by not in ("", caller):
            raise ConfigError(
                "task.loss includes task.penalty, and the loop calls both, so the penalty would count twice: leave out "
                "task.penalty"
            )
        self._added_by, self.penalty_used = caller, True
        self.total_step += self.instruction.learning_rate
        return self._stages.penalty(model)

    def reply(
        self,
        model: nn.Module | None = None,
        *,
        num_examples: int,
        labels: Iterable[int] | Mapping[str, Iterable[int]] | None = None,
        metrics: Mapping[str, float | Sequence[float]] | None = None,
        capacity: str | float | None = None,
    ) -> Message:
        """Return the reply message. A task can be answered only once.

        Parameters
        ----------
        model : nn.Module | None
            The trained model: its parameters are sent, its buffers are not. None in an evaluation.
        num_examples : int
            Number of examples used. A reply with 0 examples has the weight 0 in the mean.
        labels : Iterable[int] | Mapping[str, Iterable[int]] | None
            Classes of this client's training data; None: all classes. Only the classifier rows of these classes are
            averaged. If the model has several heads, pass a mapping from each head, named by its layer or parameter, to
            the classes of that head, such as ``{"digits": [1, 2], "months": [11]}``.
        metrics : Mapping[str, float | Sequence[float]] | None
            Metrics to report. Lists are not averaged: ``train_metrics_aggr_fn`` or ``evaluate_metrics_aggr_fn``
            receives them.
        capacity : str | float | None
            Largest level or rate that this node can train from the next round on, in a reply to training. None: no
            change, except that the reply reports the rate in the node config if this rate is below the message's rate.
        """
        messages.new_metrics(metrics or {}, num_examples)  # raises before the client's state is saved
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
        self._check_open()
        check_imports()  # again, because training may have imported more modules
        update = Outgoing(tensors={}, labels=read_classes(labels), num_examples=num_examples, metrics=metrics)
        records, config = dict[str, ArrayRecord](), new_capacity(capacity, self.context, self.instruction)
        if self.instruction.is_evaluation and not (model is None and capacity is None):
            raise ConfigError("a reply to an evaluation carries no parameters and no capacity: leave them out")
        if self.instruction.is_training or model is not None:
            update = self._trained(model, update)
            records = pack_trained(update.tensors, update.scales, update.form)
            config |= update.fields
            if update.form != FULL_PRECISION:
                config[messages.UPLOAD] = update.form
        self._is_open = False
        return Contents(records, {**config, **labels_config(update.labels)}, update.metrics, update.num_examples)

    def keep(self, model: nn.Module) -> None:
        """Save the personal parameters of ``model`` and the state of stages; ``reply(model, ...)`` saves them too.

        If the client's simulated device drops out, save nothing.
        """
        self._issued.check(model, "task.keep")
        parameters, travels = self._issued.parameters_of(model), self.instruction.travels
        personal = {name: sent_tensor(parameter) for name, parameter in parameters.items() if not travels(name)}
        stages = {f"{STAGES}{name}": tensor for name, tensor in self._stages.state.items()}
        if (personal or self._stages.stateful) and not self.instruction.drops_out:
            save_tensors(self.context, self.instruction, personal | stages)

    def _load(self) -> Iterator[tuple[float, nn.Module]]:
        instruction, state = self.instruction, self._received()
        if instruction.is_partial:
            saved = {name: tensor for name, tensor in (self._saved or {}).items() if not name.startswith(STAGES)}
            state = {**personal_state(instruction, self.build, saved), **state}
        for rate, model in load_models(instruction, self.build, state, self.message):
            if self._seed_torch:
                seed_torch(self.seed)
            yield rate, model
            del model  # keep no reference, so that the caller can free it

    def _trained(self, model: nn.Module | None, update: Outgoing) -> Outgoing:
        """Return ``update`` with the trained parameters, changed by all stages. Save the client's state."""
        model = self._issued.check(model, "task.reply")
        parameters = self._issued.parameters_of(model)
        if update.num_examples and not self.penalty_used:
            check_penalty(self._stages, self.instruction.proximal_mu)
        tensors = trained_tensors(parameters, self._received, self.instruction.travels)
        if update.num_examples:
            warn_if_unchanged(tensors, self._received)
        update = self._stages.on_update(replace(update, tensors=tensors), self.total_step)
        self.keep(model)
        if self._stages.notes:
            save_notes(self.context, self._stages.notes)
        return update

    def _check_open(self) -> None:
        if not self._is_open:
            raise ConfigError("this task has been answered: make a new Task for each message, and reply to it once")
