"""A stage: what happens to a client's update on its way to the mean, and to the mean on its way to the new model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from heterofl_flwr.core.plan import Plan

State = dict[str, Tensor]
"""Parameters by name."""

AS_THEY_ARE = "float32"
"""The form of tensors that no stage has written in another way."""

Held = Callable[[str], Tensor]
"""From a parameter's name to how many clients held each of its entries in this round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one client contributes, on its way to the mean on the server.

    Attributes
    ----------
    plan
        Which entries of the global model the tensors are.
    tensors
        The client's parameters by name, or what a stage has made of them.
    rate
        The client's rate in this round.
    labels
        The classes whose rows of the classifier count; None for all rows.
    weight
        What the client counts in the mean.
    form
        How the tensors are written: as they are (``float32``), or in the form of a stage, which turns them back.
    scales
        What belongs to that form: how large a step of tensors in few bits is.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]
    rate: float = 1.0
    labels: Sequence[int] | None = None
    weight: float = 1.0
    form: str = AS_THEY_ARE
    scales: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What a client sends of its parameters; ``tensors``, ``form`` and ``scales`` are those of ``Update``."""

    tensors: Mapping[str, Tensor]
    form: str = AS_THEY_ARE
    scales: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """What stages on the server may know of a round.

    Attributes
    ----------
    server_round
        The round, from 1.
    state
        The global model that the round began with; never to be changed.
    model
        The architecture of the global model; its values mean nothing.
    rows
        The parameters whose rows belong to classes.
    untrained
        From a rate to the parameters that its clients hold and do not train.
    holders
        From a parameter's name to how many clients hold each of its entries, whether they are drawn or not.
    """

    server_round: int
    state: Mapping[str, Tensor]
    model: nn.Module
    rows: Sequence[str] = ()
    untrained: Callable[[float], frozenset[str]] = lambda rate: frozenset()
    holders: Held = lambda name: torch.ones(())


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientContext:
    """What stages on a client may know of the instruction that it answers.

    Attributes
    ----------
    received
        Gives the parameters that the server sent; reading them takes time, so it is a function.
    seed
        A function of the run's seed, the round and the client.
    kept
        What the client's stages keep from task to task, by names that begin with the stage's own; write into it.
    """

    received: Callable[[], Mapping[str, Tensor]]
    seed: int
    kept: State = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pull:
    """What a client's training adds to its loss: ``strength / 2 |w - towards()|^2``."""

    strength: float
    towards: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a stage needs of the other links of the chain.

    Attributes
    ----------
    changes
        The mean sums what the stage makes of changes, so it starts from zeros in double precision.
    counting_mean
        The mean is the counting mean, and no other.
    equal_weights
        Each client counts once.
    steps
        Each entry of the mean comes from that entry of the updates, so that the stage can step along it.
    fixed_slices
        A client's slice is the same in every round.
    """

    changes: bool = False
    counting_mean: bool = False
    equal_weights: bool = False
    steps: bool = False
    fixed_slices: bool = False


class Stage:
    """A link of the chain; override what you need, as each method's default changes nothing.

    Clients run ``on_client`` of the stages that their instruction names, in the order of the chain. The server runs
    ``on_reply`` of each stage in the opposite order, for the last one was nearest to the wire; and, when all updates
    are in the mean, ``on_mean`` in the order of the chain.
    """

    name: str = ""
    """Names the stage in messages of errors and in checkpoints; "" stands for the name of its class."""

    needs = Needs()

    def instruction(self) -> Mapping[str, float | str]:
        """Return what the instruction to clients says of this stage, by key."""
        return {}

    @classmethod
    def from_instruction(cls, config: Mapping[str, object]) -> "Stage | None":
        """Return the stage that an instruction names, on a client; None where it names none of this kind."""
        del config
        return None

    def pull(self, context: ClientContext) -> Pull | None:
        """Return what a client's training is pulled to; None for nothing."""
        del context
        return None

    def on_client(self, outgoing: Outgoing, context: ClientContext) -> Outgoing:
        """Return what the client sends in place of its parameters: clipped, compressed, masked."""
        del context
        return outgoing

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Return what the mean gets of a reply; raise ``ReplyError`` to refuse it. Never change its tensors."""
        del context
        return update

    def on_mean(self, new: State, held: Held, context: RoundContext) -> State:
        """Return the new model from that of the mean, or of the stage before; entries that nobody held keep still."""
        del held, context
        return new

    def evaluated(self, state: State) -> State:
        """Return the model that is evaluated and kept, from the one that is trained."""
        return state

    def facts(self) -> Mapping[str, float]:
        """Return what the record of a round says of this stage."""
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """Return what the stage keeps from round to round, for a checkpoint."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what ``state`` returned; with an empty one, begin anew."""
        del state


def label(stage: Stage) -> str:
    """Return the name of a stage."""
    return stage.name or type(stage).__name__
