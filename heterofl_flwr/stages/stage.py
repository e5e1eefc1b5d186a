"""A stage: what happens to a client's update on its way to the mean, and to the mean on its way to the new model."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from heterofl_flwr.core.aggregator import Aggregator, Version
from heterofl_flwr.core.slice_plan import Plan

State = dict[str, Tensor]
"""Parameters by name."""

AS_THEY_ARE = "float32"
"""The form of tensors that no stage has written in another way."""

Held = Callable[[str], Tensor]
"""From a parameter's name to how many clients held each of its entries in this round."""

Said = Mapping[str, object]
"""What goes with a message or a reply beside parameters, by key: numbers, text, bytes, and lists of these."""

Result = TypeVar("Result")

Talk = Generator[Mapping[int, Said], Mapping[int, Said], Result]
"""Asks clients, in several turns: yields what each is asked, and gets what those say that answer (``Stage.answer``)."""


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
    client
        The client, as long as the round lasts.
    said
        What the reply says beside.
    sent
        What the client was sent; None where it is of the model that the round began with.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]
    rate: float = 1.0
    labels: Sequence[int] | None = None
    weight: float = 1.0
    form: str = AS_THEY_ARE
    scales: Tensor | None = None
    client: int = 0
    said: Said = field(default_factory=dict)
    sent: Version | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """What a client sends; ``tensors``, ``form``, ``scales``, ``labels`` and ``said`` are those of ``Update``."""

    tensors: Mapping[str, Tensor]
    form: str = AS_THEY_ARE
    scales: Tensor | None = None
    labels: Sequence[int] | None = None
    num_examples: int = 1
    metrics: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    said: Said = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """What stages on the server may know of a round.

    Attributes
    ----------
    server_round
        The round, from 1.
    state
        The global model that the round began with, and for ``on_reply`` the one that the client was sent; never to be
        changed.
    model
        The architecture of the global model; its values mean nothing.
    rows
        The parameters whose rows belong to classes.
    untrained
        From a rate to the parameters that its clients hold and do not train.
    holders
        From a parameter's name to how many clients hold each of its entries, whether they are drawn or not.
    by_label
        Whether rows count for the classes that clients name.
    extra_rows
        Whether rows beyond the classes count for every holder (``Fidelity.extra_rows``).
    grid
        Where noise is added: the L2 norm of the longest change, and the step of the grid on which changes are summed.
    learning_rate
        With what clients train in this round; 0 where the server sends them none.
    run
        Random id of the run.
    norm_bound
        Upper bound on the L2 norm of the mean change of a stage that sums replies itself; 0 for none.
    """

    server_round: int
    state: Mapping[str, Tensor]
    model: nn.Module
    rows: Sequence[str] = ()
    untrained: Callable[[float], frozenset[str]] = lambda rate: frozenset()
    holders: Held = lambda name: torch.ones(())
    by_label: bool = True
    extra_rows: bool = False
    grid: tuple[float, float] | None = None
    learning_rate: float = 0.0
    run: int = 0
    norm_bound: float = 0.0


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
    notes
        What they keep from message to message of a round, in the node's memory and never on its disk; None where the
        client's app does not say what its context is.
    node_config
        Config of the node, which no server sets.
    """

    received: Callable[[], Mapping[str, Tensor]]
    seed: int
    kept: State = field(default_factory=dict)
    notes: dict[str, bytes] | None = None
    node_config: Said = field(default_factory=dict)


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
    holders
        So many clients of the largest rate take part in each round, if they are there: they hold every entry.
    """

    changes: bool = False
    counting_mean: bool = False
    equal_weights: bool = False
    steps: bool = False
    fixed_slices: bool = False
    holders: int = 0


class Stage:
    """A link of the chain; override what you need, as each method's default changes nothing.

    Clients run ``on_client`` of the stages that their instruction names, in the order of the chain. The server runs
    ``on_reply`` of each stage in the opposite order, for the last one was nearest to the wire; and, when all updates
    are in the mean, ``on_mean`` in the order of the chain.
    """

    name: str = ""
    """Names the stage in messages of errors and in checkpoints; "" stands for the name of its class."""

    needs = Needs()

    reads_replies = True
    """Whether what ``on_reply`` does needs each reply; not if clients or ``on_mean`` do as much."""

    refused: Mapping[int, str] = {}
    """Clients that the stage left out of this round, or named as liars, with the reason."""

    skipped = False
    """True if the stage leaves the model as it is in this round."""

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

    def before(self, clients: Mapping[int, Update], context: RoundContext) -> Talk[Mapping[int, Said]]:
        """Ask clients before they train; return those that may train, with what their instructions say beside.

        ``clients`` have no tensors yet.
        """
        del context
        yield from ()
        return {client: {} for client in clients}

    def answer(self, context: ClientContext) -> Said:
        """Return what the client says to a question of the stage, which ``from_instruction`` was given."""
        del context
        return {}

    def open_aggregator(self, state: Mapping[str, Tensor]) -> Aggregator:
        """Return the aggregator of a stage that sums replies itself, for a round that begins with this state."""
        raise NotImplementedError(f"{label(self)} has no aggregator")

    def after(self, context: RoundContext) -> Talk[None]:
        """Ask clients when all replies were added, before the mean is taken."""
        del context
        yield from ()

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Return what the mean gets of a reply; raise ``ReplyError`` to refuse it. Never change its tensors."""
        del context
        return update

    def on_mean(self, new: State, held: Held, context: RoundContext) -> State:
        """Return the new model from that of the mean, or of the stage before; entries that no client held stay."""
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


class KeepingStage(Stage):
    """A stage that keeps tensors from round to round, by names of its own; they are replaced, and none is changed."""

    def __post_init__(self) -> None:
        self.kept: State = {}

    def state(self) -> Mapping[str, Tensor]:
        """Return what is kept."""
        return self.kept

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what was kept."""
        self.kept = dict(state)


def label(stage: Stage) -> str:
    """Return the name of a stage."""
    return stage.name or type(stage).__name__
