"""The server half of a stage: it changes updates before the mean, and the model after it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from heterofl_flwr.core.aggregator import Version
from heterofl_flwr.core.label_rows import Labels
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.stages.client_stage import FULL_PRECISION, ClientStage, Fields, State

HolderCounts = Callable[[str], Tensor]
"""Function from a parameter's name to a tensor with one value for each entry. The value is the number of clients that
hold the entry (``RoundContext.holders``), or the total weight of these clients (``ServerStage.on_mean``).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One client's update, before it is added to the mean.

    Attributes
    ----------
    plan
        The entries of the global model that the tensors contain.
    tensors
        The client's parameters by name. A stage may replace them by their changes, or by the encoding that ``form``
        names.
    rate
        The client's rate in this round.
    labels
        The client's classes; None for all. Of the classifier, only the rows of these classes are averaged.
    weight
        The client's weight in the mean. A client without examples has weight 0: its update is checked, but not
        averaged.
    form, scales
        Name of the encoding (``float32``, ``float16``, ``int8`` or ``masked``), and its step sizes.
    client
        Id of the client in this round.
    fields
        Entries of the reply's config.
    version
        The version of the model that the client received; None for the current model.
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
    """Data of a round for server stages.

    Attributes
    ----------
    server_round
        The number of the round, counted from 1.
    state
        The global model at the start of the round. In ``on_reply`` and ``on_added``, the version that the client
        received. Do not change it.
    rows
        Names of the parameters with one row for each class.
    untrained
        Function from a rate to the names of parameters that clients of this rate do not train.
    holders
        Function from a parameter's name to the number of clients, among all clients of the run, that hold each entry.
        Clients that do not train the parameter do not count.
    by_label
        Whether classifier rows are averaged by label: from a client with labels, only the rows of these labels.
    extra_rows
        Whether classifier rows of no class, such as [MASK], are averaged over all clients (``Fidelity.extra_rows``).
    grid
        With privacy noise, the clipping norm and the step size of the fixed-point changes; without noise, None.
    learning_rate
        Learning rate of the clients in this round; 0 if the server sends none.
    run
        Random id of the run.
    global_rate
        Rate of the global model.
    norm_bound
        Upper bound on the L2 norm of the mean change in secure aggregation; 0 for no bound.
    """

    server_round: int
    state: Mapping[str, Tensor]
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
    """Properties and requirements of a server stage, which are checked against the mean and other stages.

    Attributes
    ----------
    changes
        The stage replaces parameters in updates by their changes, in double precision.
    counting_mean
        The mean must be the counting mean (``CountingMean``), not a robust or asynchronous one.
    equal_weights
        Each client must have weight 1 in the mean.
    steps
        The stage takes a step along the mean change. So each entry of the mean must depend only on the same entry of
        the updates.
    holders
        A training round first samples clients of the largest rate, up to this number.
    """

    changes: bool = False
    counting_mean: bool = False
    equal_weights: bool = False
    steps: bool = False
    holders: int = 0


class ServerStage:
    """Base class for the server half of a stage. By default, its methods change nothing.

    In a chain, updates pass from the last stage to the first, and the mean from the first to the last.
    """

    name: str = ""
    """Name in error messages and checkpoints; "" stands for the name of the class."""

    needs = Needs()

    reads_replies = True
    """False if clients or ``on_mean`` also do the work of ``on_reply``, so that secure aggregation may skip it."""

    def client(self) -> ClientStage | None:
        """Return the client half of this stage, or None."""
        return None

    def broadcast(self, context: RoundContext) -> Mapping[str, Tensor]:
        """Return tensors for the client half, by parameter name, each in the shape of the parameter.

        Clients receive slices of these tensors.
        """
        return {}

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Return the update to add to the mean. Raise ``ReplyError`` to reject the reply.

        Do not change the tensors of ``update`` in place.
        """
        return update

    def on_added(self, update: Update, context: RoundContext) -> None:
        """Process an update after it was added to the mean. This is not called for updates of weight 0."""

    def on_mean(self, new: State, holders: HolderCounts, context: RoundContext) -> State:
        """Return the new model, computed from ``new``, the mean of the round.

        With ``Needs(changes=True)``, ``new`` is the mean change. ``holders`` gives, for each entry, the total weight of
        the clients in the mean. Entries that no client of the round holds must keep their values.
        """
        return new

    def evaluated(self, state: State) -> State:
        """Return the model to evaluate and save, computed from the trained model."""
        return state

    def level_tensors(self, rate: float) -> State:
        """Return the values that the level of ``rate`` has for the parameters that each level averages separately.

        Return {} if the level has the values of the global model.
        """
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """Return this stage's tensors for a checkpoint.

        A tensor in the shape of a parameter, with the name of the parameter after any prefix and a slash, is permuted
        with the parameter where channels are sorted (``slice_rule="important"``).
        """
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of a checkpoint, or permuted ones (see ``state``); an empty mapping begins a new run."""

    def metrics(self) -> Mapping[str, float]:
        """Return metrics for the record of a round."""
        return {}

    @property
    def keeps_client_state(self) -> bool:
        """Whether clients store tensors for this stage between rounds."""
        client = self.client()
        return client is not None and client.stateful


class StatefulStage(ServerStage):
    """A server stage with named tensors, which are saved in checkpoints. Do not change a tensor in place."""

    def __init__(self) -> None:
        self.tensors: State = {}

    __post_init__ = __init__  # for subclasses that are dataclasses

    def state(self) -> Mapping[str, Tensor]:
        """Return this stage's tensors for a checkpoint."""
        return self.tensors

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors of a checkpoint; an empty mapping begins a new run."""
        self.tensors = dict(state)


def stage_name(stage: ServerStage) -> str:
    """Return ``stage.name``, or the name of the stage's class if ``stage.name`` is empty."""
    return stage.name or type(stage).__name__
