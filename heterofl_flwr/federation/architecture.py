"""Architectures: the parameters sent to clients, and the slice of each rate (relative model size)."""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, listed
from heterofl_flwr.core.channel_order import ChannelOrder
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.core.slice_rules import NESTED_RULES, SliceFunction, SliceRule, make_slice_function, window_number
from heterofl_flwr.federation.options import Options

logger = logging.getLogger(__name__)

State = dict[str, Tensor]


class Architecture:
    """The parameters that clients share, and the slice of each rate.

    Subclasses set both. In this base class nothing is shared: each client has a model of its choice and sends no
    parameters.

    Attributes
    ----------
    mix, options, seed
        The mix, the server's options, and the random seed of the run.
    shared
        Patterns (``fnmatch``) of the names of shared parameters.
    personal
        Whether some parameters stay with each client.
    model
        A module with the architecture of the global model. The parameters of the run are not stored in it.
    global_plan
        The plan with all entries of each shared parameter.
    dtypes
        The dtype of each parameter in messages.
    rows
        Names of the parameters with one row for each class.
    ignores_labels
        Whether the labels in replies are ignored.
    channel_order
        The order of channels by importance; None unless the slice rule is ``important``.
    """

    personal = True

    def __init__(self, mix: Mix, options: Options, seed: int = 0) -> None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
            raise ConfigError(f"seed is {seed!r}; expected an integer of less than 2^63, as messages hold 64 bits")
        self.mix, self.options, self.seed = mix, options, seed
        self.shared: tuple[str, ...] = ()
        self.model = nn.Module()
        self.global_plan = Plan({})
        self.dtypes: Mapping[str, torch.dtype] = {}
        self.rows: list[str] = []
        self.ignores_labels = True
        self.channel_order: ChannelOrder | None = None

    @property
    def clients_keep(self) -> bool:
        """Whether clients store parameters or the state of a stage between rounds."""
        return self.personal or any(stage.keeps_client_state for stage in self.options.stages)

    @property
    def trains_all(self) -> bool:
        """Whether clients train all parameters of their models."""
        return True

    def plan(self, rate: float) -> Plan:
        """Return the plan (entries of each parameter) of a rate's slice; in this class, a plan without parameters."""
        return self.global_plan

    def train_plan(self, server_round: int, rate: float, partition: int) -> Plan:
        """Return the plan of a client's slice in a round."""
        return self.plan(rate)

    def norms(self, rate: float) -> Mapping[str, int]:
        """Return the number of channels of each batch norm layer at ``rate``, by layer name."""
        return {}

    def untrained(self, rate: float) -> frozenset[str]:
        """Return the names of parameters that clients of ``rate`` receive and do not train."""
        return frozenset()

    def frozen_fingerprint(self, rate: float) -> str:
        """Return a hash of the frozen parameters that are not sent; '' if the model has no such parameters."""
        return ""

    def slice_function(self, rule: SliceRule, server_round: int, rate: float, partition: int = 0) -> SliceFunction:
        """Return the function that selects the entries of a slice in a round."""
        number = window_number(server_round, self.options.slicing.roll_by)
        return make_slice_function(rule, seed=self.seed, server_round=number, rate=rate, partition=partition)

    def nested_rates(self, rate: float) -> list[float]:
        """Return the rates whose models are parts of the model of ``rate``: ``rate`` and all smaller rates of the mix.

        If slices move, or with ``Slicing.by_level``, return ``rate`` alone.
        """
        slicing = self.options.slicing
        is_nested = slicing.slice_rule in NESTED_RULES and not slicing.by_level
        return [rate, *(smaller for smaller in self.mix.rates if is_nested and smaller < rate)]

    def initial_state(self) -> State:
        """Return the initial values of the shared parameters; in this class, an empty dictionary."""
        return {}

    def check_state(self, state: Mapping[str, Tensor]) -> State:
        """Check the parameters of a global model, and return those that clients exchange with the server.

        In this class, return an empty dictionary, with a warning if ``state`` has parameters.
        """
        if state:
            logger.warning("initial_arrays has %s, and no client gets them: each has a model of its own", listed(state))
        return {}
