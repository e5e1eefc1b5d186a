"""The instruction in a server's message."""

from dataclasses import dataclass
from typing import get_args

from flwr.app import ConfigRecord, Message, MessageType

from heterofl_flwr.core.exchanged import ALL, is_shared
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.core.slice_rules import SliceRule
from heterofl_flwr.stages.secure_sum_client import NONCE
from heterofl_flwr.transport import messages, reading


@dataclass(frozen=True, slots=True)
class Instruction:
    """Config of a server's message, parsed and checked.

    Attributes
    ----------
    config
        The config record of the message.
    kind
        Message type: ``train``, ``evaluate``, ``query.moments``, or ``train.publish`` and ``train.learn`` of
        FedH2L.
    rate
        Rate of the client's model.
    rates
        In training, ``rate`` and the rates of the smaller models inside the client's model. In other messages, the
        rates of all models to run.
    global_rate
        Rate of the global model.
    run_seed
        Random seed of the run.
    server_round, partition
        Round number, from 1, and index of the client's part of the data.
    slice_rule
        Rule that slices smaller models out of the received model.
    window
        Round number for ``slice_rule``; see ``core.slice_rules.window_number``. 1 if the server sent none.
    shared
        Name patterns of the exchanged parameters. All other parameters stay with the client.
    has_trained
        Whether this client has trained in this run before.
    run_key
        Random run id; clients ignore state of other runs. None if clients keep no state.
    counted_round
        Latest round whose state of stages counts: in later rounds, the client's reply was lost or rejected. None if the
        server sent none.
    oldest_checkpoint
        Round of the oldest checkpoint from which the run may be resumed; 0 if the server sent none.
    frozen_base
        Hash of the frozen parameters; empty without frozen parameters.
    learning_rate
        Learning rate that the server sent; 0 for none.
    proximal_mu
        Strength of FedProx's penalty; 0 for none.
    work
        Fraction of local steps to run; below 1 only on simulated devices.
    drops_out
        Whether the client's simulated device drops out, so that the client saves no state.
    """

    config: ConfigRecord
    kind: str
    rate: float
    rates: tuple[float, ...]
    global_rate: float
    run_seed: int
    server_round: int
    partition: int
    slice_rule: SliceRule
    window: int
    shared: tuple[str, ...]
    has_trained: bool
    run_key: int | None
    counted_round: int | None
    oldest_checkpoint: int
    frozen_base: str
    learning_rate: float
    proximal_mu: float
    work: float
    drops_out: bool

    @classmethod
    def of(cls, message: Message) -> "Instruction":
        """Parse the instruction in a message. Raise ``ReplyError`` if a value is missing or has the wrong type."""
        config = reading.read_config(message)
        rules: tuple[SliceRule, ...] = get_args(SliceRule)
        rate = reading.read_value(config, messages.RATE, float)
        global_rate = reading.read_optional(config, messages.GLOBAL_RATE, float)
        return cls(
            config=config,
            kind=message.metadata.message_type,
            rate=rate,
            rates=tuple(reading.read_rates(config)),
            global_rate=rate if global_rate is None else global_rate,
            run_seed=reading.read_value(config, messages.SEED, int),
            server_round=reading.read_value(config, messages.SERVER_ROUND, int),
            partition=reading.read_value(config, messages.PARTITION, int),
            slice_rule=reading.read_choice(config, messages.SLICE_RULE, rules, "prefix"),
            window=reading.read_optional(config, messages.WINDOW, int) or 1,
            shared=reading.read_shared(config),
            has_trained=bool(config.get(messages.TRAINED)),
            run_key=reading.read_optional(config, messages.RUN_KEY, int),
            counted_round=reading.read_optional(config, messages.COUNTED_ROUND, int),
            oldest_checkpoint=reading.read_optional(config, messages.OLDEST_CHECKPOINT, int) or 0,
            frozen_base=reading.read_optional(config, messages.BASE, str) or "",
            learning_rate=reading.read_optional(config, messages.LEARNING_RATE, float) or 0.0,
            proximal_mu=reading.read_optional(config, messages.PROXIMAL_MU, float) or 0.0,
            work=reading.read_optional(config, messages.WORK, float) or 1.0,
            drops_out=bool(config.get(messages.DROPS_OUT)),
        )

    @property
    def seed(self) -> int:
        """Random seed, derived from the run's seed, the round, the client and, with ``SecureSum``, the nonce."""
        start = reading.read_optional(self.config, NONCE, int)
        return derive(self.run_seed, "client", self.server_round, self.partition, *([start] if start else []))

    @property
    def is_training(self) -> bool:
        """Whether the reply must carry a trained model."""
        return self.kind == MessageType.TRAIN

    @property
    def is_evaluation(self) -> bool:
        """Whether the message asks for an evaluation."""
        return self.kind.startswith(MessageType.EVALUATE)

    @property
    def is_partial(self) -> bool:
        """Whether some parameters stay with the client."""
        return self.shared != ALL

    def travels(self, name: str) -> bool:
        """Whether the parameter of this name is exchanged with the server."""
        return is_shared(name, self.shared)
