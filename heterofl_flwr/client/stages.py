"""Client stages: they add penalties to the loss, and change the update before it is sent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

from flwr.app import Context
from torch import Tensor, nn

from heterofl_flwr.client.instruction import Instruction
from heterofl_flwr.client.load_model import check_not_lost
from heterofl_flwr.client.state import NodeFiles, load_notes
from heterofl_flwr.common.errors import ConfigError, check_returned
from heterofl_flwr.common.named_tensors import entries_under
from heterofl_flwr.nn.penalty import Penalty, Quadratic, Term
from heterofl_flwr.stages.client_stage import ClientContext, ClientStage, Outgoing, RespondingStage, State
from heterofl_flwr.stages.registry import read_stages


class ClientChain:
    """The client stages of one task, in the order of the server's message.

    Parameters
    ----------
    stages : Sequence[ClientStage]
        The client stages that the server's message names.
    context : ClientContext
        Context for all stages, with tensors named ``stage/name``.
    """

    def __init__(self, stages: Sequence[ClientStage], context: ClientContext) -> None:
        self.stages, self._context = stages, context
        self.state: State = dict(context.state)

    def context_of(self, stage: ClientStage, total_step: float = 0.0) -> ClientContext:
        """Return the context of one stage, with the tensors of this stage only."""
        start = f"{stage.registered_name}/"
        return replace(
            self._context,
            total_step=total_step,
            state=entries_under(start, self.state),
            broadcast=entries_under(start, self._context.broadcast),
        )

    @property
    def penalising(self) -> list[str]:
        """Names of the stages that add a penalty to the loss."""
        defaults = ClientStage.penalty, ClientStage.quadratic
        stages = [stage for stage in self.stages if (type(stage).penalty, type(stage).quadratic) != defaults]
        return [stage.registered_name for stage in stages]

    @property
    def stateful(self) -> list[str]:
        """Names of the stages that keep tensors on the client."""
        return [stage.registered_name for stage in self.stages if stage.stateful]

    def on_update(self, update: Outgoing, total_step: float = 0.0) -> Outgoing:
        """Return the update after all stages, and store the stages' new state.

        If the client trained on no examples, stages with state are skipped, and keep their state.
        """
        for stage in self.stages:
            if stage.stateful and not update.num_examples:
                continue
            context, name = self.context_of(stage, total_step), f"{type(stage).__name__}.on_update"
            update = _checked(stage.on_update(update, context), name)
            if context.state and not stage.stateful:
                raise ConfigError(f"{name} keeps state; expected stateful = True in {type(stage).__name__}")
            start = f"{stage.registered_name}/"
            others = {key: tensor for key, tensor in self.state.items() if not key.startswith(start)}
            self.state = others | {f"{start}{key}": tensor for key, tensor in context.state.items()}
        return update

    def answer(self) -> dict[str, object]:
        """Return the answers of all stages to a query, as entries of one reply."""
        answers: dict[str, object] = {}
        for stage in self.stages:
            if isinstance(stage, RespondingStage):
                answer: object = stage.answer(self.context_of(stage))
                if not isinstance(answer, Mapping):
                    source = f"{type(stage).__name__}.answer"
                    raise ConfigError(f"{source} returned {type(answer).__name__}; expected a mapping")
                answers |= answer
        return answers


def _checked(update: object, source: str) -> Outgoing:
    """Return the result of ``on_update``. Raise ``ConfigError`` if it, or one of its attributes, has a wrong type."""
    checked = check_returned(Outgoing, update, source)
    for name, kind in {"tensors": Mapping, "form": str, "metrics": Mapping, "fields": Mapping}.items():
        if not isinstance(value := getattr(checked, name), kind):
            fault = f"an Outgoing whose {name} is of type {type(value).__name__}; expected {kind.__name__}"
            raise ConfigError(f"{source} returned {fault}")
    return checked


def _penalty_of(stage: ClientStage, context: ClientContext, model: nn.Module) -> Tensor | float:
    return stage.penalty(model, context)


class StageRunner(ClientChain):
    """The client stages of an instruction, and the penalty of FedProx.

    Parameters
    ----------
    instruction : Instruction
        The parsed config of the server's message.
    received : Callable[[], Mapping[str, Tensor]]
        Function that returns the parameters in the message.
    broadcast : Mapping[str, Tensor]
        Tensors from the server's stages, named ``stage/parameter``.
    tensors : dict[str, Tensor] | None
        Tensors that stages keep from message to message; None if this client has saved none.
    node : Context
        The client's context.

    Attributes
    ----------
    notes
        Per-round state of the stages, as bytes.
    """

    def __init__(
        self,
        instruction: Instruction,
        received: Callable[[], Mapping[str, Tensor]],
        broadcast: Mapping[str, Tensor],
        tensors: dict[str, Tensor] | None,
        node: Context,
    ) -> None:
        self._instruction, self.notes = instruction, load_notes(node)
        context = ClientContext(
            received=received,
            seed=instruction.seed,
            config=instruction.config,
            broadcast=broadcast,
            state=tensors or {},
            round_state=self.notes,
            node_config=node.node_config,
            records=NodeFiles.of(node.node_config),
        )
        super().__init__(read_stages(instruction.config), context)
        if self.stateful and tensors is None:
            check_not_lost(instruction, f"the tensors that {', '.join(self.stateful)} keeps")

    @cached_property
    def penalty(self) -> Penalty:
        """Penalty of FedProx and of the stages."""
        strength, terms = self._instruction.proximal_mu, list[Term]()
        quadratics = [Quadratic(strength, self._context.received())] if strength else []
        for stage in self.stages:
            context = self.context_of(stage)
            if type(stage).penalty is not ClientStage.penalty:
                terms.append(partial(_penalty_of, stage, context))
            elif (quadratic := stage.quadratic(context)) is not None:
                quadratics.append(quadratic)
        return Penalty.of(quadratics, terms)
