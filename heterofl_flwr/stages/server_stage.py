"""The server half of a stage: what happens to clients' updates before the mean, and to the model after it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from heterofl_flwr.core.aggregator import Version
from heterofl_flwr.core.label_rows import Labels
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.stages.client_stage import FULL_PRECISION, ClientStage, Fields, State

HolderCounts = Callable[[str], Tensor]
"""From a parameter's name to the number of clients that hold each of its entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One client's update on its way to the mean.

    Attributes
    ----------
    plan
        The entries of the global model that the tensors are.
    tensors
        The client's parameters by name, or their encoding by a stage.
    rate
        The client's rate in this round.
    labels
        The classes whose rows of the classifier count; None for all rows.
    weight
        The client's weight in the mean; 0 for a client without examples, whose update is checked and not used.
    form, scales
        Form of the encoding, and its step sizes.
    client
        Id of the client in this round.
    fields
        Entries of the reply's config.
    version
        The version of the model that the client was sent; None for the model at the beginning of the round.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]
    rate: float = 1.0
    labels: Labels | None = None
    weight: float = 1.0
    form: str = FULL_PRECISION
    scales: Tensor | None = None
    client: int = 0
    fields: Fields = field(default_factory=dict)
    version: Version | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """The round that a server stage works on.

    Attributes
    ----------
    server_round
        The round, from 1.
    state
        The global model at the beginning of the round; in ``on_reply`` and ``on_added`` the one that the client was
        sent. Never change it.
    model
        The architecture of the global model; its values mean nothing.
    rows
        The parameters whose rows belong to classes.
    untrained
        From a rate to the parameters that its clients hold and do not train.
    holders
        From a parameter's name to the number of clients that hold each entry, sampled in this round or not.
    by_label
        True if rows count for the classes that clients name.
    extra_rows
        True if rows beyond the classes count for every holder (``Fidelity.extra_rows``).
    grid
        With noise, the largest L2 norm of a change, and the grid step in which changes are summed.
    learning_rate
        Learning rate of the clients in this round; 0 if the server sends none.
    run
        Random id of the run.
    global_rate
        Rate of the global model.
    norm_bound
        Upper bound on the L2 norm of the mean change of a ``Conversation``; 0 for none.
    """

    server_round: int
    state: Mapping[str, Tensor]
    model: nn.Module
    rows: Sequence[str] = ()
    untrained: Callable[[float], frozenset[str]] = lambda rate: frozenset()
    holders: HolderCounts = lambda name: torch.ones(())
    by_label: bool = True
    extra_rows: bool = False
    grid: tuple[float, float] | None = None
    learning_rate: float = 0.0
    run: int = 0
    global_rate: float = 1.0
    norm_bound: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Requirements of a stage on the rest of the chain.

    Attributes
    ----------
    changes
        The mean sums changes, from zeros in double precision.
    counting_mean
        The mean is the counting mean.
    equal_weights
        Each client counts once.
    steps
        Each entry of the mean comes from that entry of the updates, so that the stage can step along it.
    holders
        Minimum number of clients of the largest rate in each round, if there are enough.
    """

    changes: bool = False
    counting_mean: bool = False
    equal_weights: bool = False
    steps: bool = False
    holders: int = 0


class ServerStage:
    """The server half of a stage; each method's default changes nothing.

    Updates pass the stages from the last to the first, as the last one is nearest to the wire; the mean passes them
    from the first to the last.
    """

    name: str = ""
    """Name in error messages and checkpoints; "" for the name of the class."""

    needs = Needs()

    reads_replies = True
    """False if ``on_reply`` may be skipped because clients or ``on_mean`` do the same."""

    def client(self) -> ClientStage | None:
        """Return the client half, which clients run by its registered name and fields; None without one."""
        return None

    def broadcast(self, context: RoundContext) -> Mapping[str, Tensor]:
        """Return tensors for the client half, by parameter name in global shapes; each client receives its slice."""
        del context
        return {}

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Return the update that enters the mean; raise ``ReplyError`` to reject it. Never change its tensors."""
        del context
        return update

    def on_added(self, update: Update, context: RoundContext) -> None:
        """Use an update that has entered the mean, after ``on_reply`` of all stages; its weight is above 0."""

    def on_mean(self, new: State, holders: HolderCounts, context: RoundContext) -> State:
        """Return the new model from the mean of the round; entries without a holder keep their value."""
        del holders, context
        return new

    def evaluated(self, state: State) -> State:
        """Return the model that is evaluated and saved, from the one that is trained."""
        return state

    def level_tensors(self, rate: float) -> State:
        """Return the parameters in which the model of a rate differs from its slice, in its shapes."""
        del rate
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """Return the tensors of this stage for a checkpoint."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of a checkpoint; an empty mapping begins a new run."""
        del state

    def metrics(self) -> Mapping[str, float]:
        """Return numbers by name for the record of a round."""
        return {}

    @property
    def keeps_client_state(self) -> bool:
        """True if clients keep tensors for this stage from round to round."""
        client = self.client()
        return client is not None and client.stateful


class StatefulStage(ServerStage):
    """A server stage with tensors by name, saved in checkpoints; assign new ones, never change one in place."""

    def __init__(self) -> None:
        self.tensors: State = {}

    __post_init__ = __init__  # of dataclasses, whose constructor calls it

    def state(self) -> Mapping[str, Tensor]:
        """Return the tensors."""
        return self.tensors

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace the tensors."""
        self.tensors = dict(state)


def stage_name(stage: ServerStage) -> str:
    """Return the name of a stage."""
    return stage.name or type(stage).__name__
