"""Client stages of an instruction: the penalty that they add to the loss, and the update that they send."""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from heterofl_flwr.client.instruction import Instruction
from heterofl_flwr.client.model import check_not_lost
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.stages.registry import client_stages
from heterofl_flwr.stages.stage import ClientContext, Outgoing, Pull, label
from heterofl_flwr.transport import messages


class StageRunner:
    """Client stages of one instruction, found by name in this process.

    Parameters
    ----------
    instruction : Instruction
        Names the stages, and the strength of FedProx.
    received : Callable[[], Mapping[str, Tensor]]
        Gives the parameters in the message.
    tensors : dict[str, Tensor]
        State of stages between messages; ``run`` changes it.
    notes : dict[str, bytes]
        Per-round state of stages; ``run`` changes it.
    node_config : Mapping[str, object]
        Config of the node.
    """

    def __init__(
        self,
        instruction: Instruction,
        received: Callable[[], Mapping[str, Tensor]],
        tensors: dict[str, Tensor],
        notes: dict[str, bytes],
        node_config: Mapping[str, object],
    ) -> None:
        self._instruction, self._received, self.tensors, self.notes = instruction, received, tensors, notes
        self._stages = client_stages(instruction.config)
        self._context = ClientContext(
            received=received, seed=instruction.seed, kept=tensors, notes=notes, node_config=node_config
        )

    @cached_property
    def _pulls(self) -> dict[str, Pull]:
        pulls = {label(stage): stage.pull(self._context) for stage in self._stages}
        return {name: pull for name, pull in pulls.items() if pull is not None}

    @property
    def with_penalty(self) -> list[str]:
        """Names of the stages that add a penalty to the loss."""
        return list(self._pulls)

    @cached_property
    def penalty(self) -> Callable[[nn.Module], Tensor] | None:
        """Penalty of FedProx or of a stage; None without them."""
        pulls = dict(self._pulls)
        if pulls and not self.tensors:
            check_not_lost(self._instruction, f"the tensors that {', '.join(pulls)} keeps")
        if strength := self._instruction.proximal_mu:
            pulls[messages.PROXIMAL_MU] = Pull(strength, self._received)
        if len(pulls) > 1:
            raise ConfigError(f"{' and '.join(pulls)} both add a penalty to the loss; expected one of them")
        return next((Quadratic(pull.strength, pull.towards()) for pull in pulls.values()), None)

    def run(self, outgoing: Outgoing) -> Outgoing:
        """Return the update to send: clipped, compressed or masked."""
        for stage in self._stages:
            outgoing = stage.on_client(outgoing, self._context)
        return outgoing


class Quadratic:
    """Penalty ``strength / 2 |w - targets|^2`` over the trained parameters."""

    def __init__(self, strength: float, targets: Mapping[str, Tensor]) -> None:
        self._strength, self._targets = strength, dict(targets)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty of a model."""
        distances = []
        for name, parameter in model.named_parameters():
            if name in self._targets and parameter.requires_grad:
                target = self._targets[name] = self._targets[name].to(parameter)  # to a GPU once, not in each step
                distances.append((parameter - target).square().sum())
        if not distances:
            raise ConfigError(
                f"this {type(model).__name__} has none of the parameters that were received: give task.penalty what "
                f"task.model() returned, not a wrapper of it"
            )
        return self._strength / 2 * torch.stack(distances).sum()
