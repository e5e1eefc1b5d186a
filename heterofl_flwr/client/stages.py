"""Client stages of an instruction: the penalty that they add to the loss, and the update that they send."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from heterofl_flwr.client.instruction import Instruction
from heterofl_flwr.client.load_model import check_not_lost
from heterofl_flwr.client.state import NodeFiles
from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.nn.penalty import Penalty, Quadratic
from heterofl_flwr.stages.client_stage import ClientChain, ClientContext, Fields, Outgoing
from heterofl_flwr.stages.registry import client_stages
from heterofl_flwr.transport import messages


class StageRunner:
    """Client stages of one instruction, found by name in this process.

    Parameters
    ----------
    instruction : Instruction
        Names the stages, and the strength of FedProx.
    received : Callable[[], Mapping[str, Tensor]]
        Gives the parameters in the message.
    broadcast : Mapping[str, Tensor]
        Tensors of the stages' server halves in the message, by ``stage/parameter``.
    tensors : dict[str, Tensor]
        State of stages between messages.
    notes : dict[str, bytes]
        Per-round state of stages; ``run`` changes it.
    node_config : Mapping[str, object]
        Config of the node.
    """

    def __init__(
        self,
        instruction: Instruction,
        received: Callable[[], Mapping[str, Tensor]],
        broadcast: Mapping[str, Tensor],
        tensors: dict[str, Tensor],
        notes: dict[str, bytes],
        node_config: Mapping[str, object],
    ) -> None:
        self._instruction, self._received, self.notes = instruction, received, notes
        if broadcast:
            _check_broadcast(broadcast, received())
        context = ClientContext(
            received=received,
            seed=instruction.seed,
            config=instruction.config,
            learning_rate=instruction.learning_rate,
            broadcast=broadcast,
            state=tensors,
            round_state=notes,
            node_config=node_config,
            records=NodeFiles.of(node_config),
        )
        self._chain = ClientChain(client_stages(instruction.config), context)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """State of stages between messages; new after ``run``."""
        return self._chain.state

    @property
    def with_penalty(self) -> list[str]:
        """Names of the stages that add a penalty to the loss."""
        return self._chain.penalising

    @cached_property
    def own_penalty(self) -> Penalty:
        """Penalty of the stages, without FedProx's."""
        if self._chain.stateful and not self.tensors:
            check_not_lost(self._instruction, f"the tensors that {', '.join(self._chain.stateful)} keeps")
        return self._chain.penalty()

    @cached_property
    def penalty(self) -> Penalty | None:
        """Penalty of FedProx and of stages; None without them."""
        penalty, strength = self.own_penalty, self._instruction.proximal_mu
        if strength:
            quadratics = [Quadratic(strength, self._received()), *filter(None, [penalty.quadratic])]
            penalty = Penalty(Quadratic.sum(quadratics), penalty.terms)
        return penalty or None

    def run(self, update: Outgoing, total_step: float) -> Outgoing:
        """Return the update to send: clipped, compressed or masked."""
        return self._chain.on_update(update, total_step)


def answer_questions(config: Fields, notes: dict[str, bytes], node_config: Mapping[str, object]) -> dict[str, object]:
    """Return the answers of client stages to questions before or after training; ``notes`` is their per-round state."""
    node: dict[str, Any] = {"node_config": node_config, "records": NodeFiles.of(node_config)}
    context = ClientContext(received=dict, seed=0, config=config, round_state=notes, **node)
    return dict(ClientChain(client_stages(config), context).answer())


def _check_broadcast(broadcast: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> None:
    """Reject a tensor of a server half that does not fit its parameter."""
    for name, tensor in broadcast.items():
        parameter = received.get(name.partition("/")[2])
        if parameter is None or (parameter.shape, parameter.dtype) != (tensor.shape, tensor.dtype):
            raise ReplyError(
                f"{messages.SERVER} sent {name[:80]!r} of {tensor.dtype} and shape {tuple(tensor.shape)} for a stage, "
                f"expected the name, type and shape of a parameter"
            )
