"""All kinds of faults, and what is promised of each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from heterofl_flwr.methods.callbacks import RoundRecord
from heterofl_flwr.settings.flat import Flat
from simulations.faulty import acts, damage
from simulations.faulty.damage import Damage
from simulations.faulty.fault import Fault, Pair

Missing = Callable[[Fault], Sequence[Pair]]
Check = Callable[[RoundRecord, Fault], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of fault.

    Attributes
    ----------
    what
        What happens, for the table.
    actor
        Whom it strikes: a client, the server, or a node as the grid shows it.
    act
        What it does there; a grid does it itself.
    missing
        Which replies the fault costs: the model has to be, bit for bit, that of a run in which these never came. None
        where chance decides.
    settings
        How such a run differs.
    processes
        Worker processes of the clients; 0: they run in the server's.
    restarts
        Whether the server ends of it and is started anew.
    damage
        What happens to its files in between.
    whole
        Whether ``after`` is when the checkpoint has been written, not when half of it has been.
    last
        Whether it strikes in the last round, where ``after`` is when half of the final model has been written.
    says
        What the logs have to say: a regular expression.
    reason
        What the record of the round has to say of the client.
    check
        Returns what else is wrong with the record of the round, if anything.
    """

    what: str
    actor: Literal["client", "server", "grid", "none"]
    act: Callable[[Fault], None] = acts.kill
    missing: Missing | None = lambda fault: ()
    settings: Mapping[str, Flat] = field(default_factory=dict)
    processes: int = 0
    restarts: bool = False
    damage: Damage | None = None
    whole: bool = False
    last: bool = False
    says: str = ""
    reason: str = ""
    check: Check = lambda record, fault: ""


def in_its_round(fault: Fault) -> Sequence[Pair]:
    """Only the reply of that round."""
    return [(fault.partition, fault.server_round)]


def from_then_on(fault: Fault) -> Sequence[Pair]:
    """All replies from that round on."""
    return [(fault.partition, number) for number in range(fault.server_round, fault.num_rounds + 1)]


def until_then(fault: Fault) -> Sequence[Pair]:
    """All replies before a node comes; to take part in a round it must be there before the instructions go out."""
    return [(fault.partition, number) for number in range(1, fault.server_round + (fault.moment != "before"))]


def reached_the_floor(record: RoundRecord, fault: Fault) -> str:
    """Say so if the round waited for its deadline, or had too few replies."""
    good = len(record.rates) - len(record.failures)
    wanted = fault.clients - 1
    if (len(record.rates), good) != (fault.clients, wanted):
        return f"{good} of {len(record.rates)} replies counted, expected {wanted} of {fault.clients}"
    return "" if record.seconds < fault.deadline else f"the round took {record.seconds:.1f} s, as if nobody was spare"


_CLIENT = {"actor": "client", "missing": in_its_round, "processes": 2}
_NODE = {"actor": "grid", "settings": {"sample.min-nodes": 2}}
_DAMAGE = {
    "actor": "server",
    "restarts": True,
    "whole": True,
    "says": r"round-\d+.json is damaged .*trying the one before",
}
_DISK = {"actor": "server", "restarts": True, "says": "cannot write .*Make room"}

KINDS: Mapping[str, Kind] = {
    "none": Kind(what="nothing", actor="none"),
    "client-killed": Kind(what="a client's process is killed", reason="ended by SIGKILL", **_CLIENT),
    "client-raises": Kind(what="a client raises an error", act=acts.fail, reason="error 2: .*made to fail", **_CLIENT),
    "client-hangs": Kind(
        what="a client hangs beyond the deadline", act=acts.hang, reason="no reply in time", **_CLIENT
    ),
    "reply-late": Kind(
        what="a reply comes a round late",
        actor="grid",
        missing=in_its_round,
        says="a reply of node .* is dropped",
        reason="no reply in time",
    ),
    "spare-hangs": Kind(
        what="one of four hangs where three are enough",
        actor="client",
        act=acts.hang,
        missing=None,
        processes=2,
        settings={"sample.fraction": 0.75, "sample.spare": 0.3},
        check=reached_the_floor,
    ),
    "too-few": Kind(
        what="a client raises where all are needed",
        actor="client",
        act=acts.fail,
        settings={"sample.min-replies": 4},
        restarts=True,
        says="3 of 4 clients gave a usable reply, expected at least 4",
    ),
    "node-joins": Kind(what="a node joins", missing=until_then, **_NODE),
    "node-leaves": Kind(what="a node leaves for good", missing=from_then_on, **_NODE),
    "node-returns": Kind(what="a node leaves, and is back in the next round", missing=in_its_round, **_NODE),
    "server-killed": Kind(what="the server is killed", actor="server", restarts=True),
    "server-terminated": Kind(what="the server gets SIGTERM", actor="server", act=acts.terminate, restarts=True),
    "server-interrupted": Kind(what="the server gets SIGINT", actor="server", act=acts.interrupt, restarts=True),
    "killed-at-end": Kind(what="the server is killed in the last round", actor="server", restarts=True, last=True),
    "two-servers": Kind(
        what="a second server is started on the folder",
        actor="server",
        act=acts.start_another,
        says="another server ended with exit code 2(?s:.*)another process",
    ),
    "disk-full": Kind(what="no byte fits on the disk", act=acts.fill_disk, **_DISK),
    "disk-short": Kind(what="half of a checkpoint fits on the disk", act=acts.fill_disk_nearly, **_DISK),
    "checkpoint-cut": Kind(what="the checkpoint is cut in half", damage=damage.cut_checkpoint, **_DAMAGE),
    "checkpoint-bit": Kind(what="a bit of the checkpoint turns", damage=damage.flip_checkpoint, **_DAMAGE),
    "checkpoint-lost": Kind(what="the checkpoint's tensors are gone", damage=damage.lose_checkpoint, **_DAMAGE),
    "voucher-cut": Kind(what="the checkpoint's JSON is cut in half", damage=damage.cut_voucher, **_DAMAGE),
    "history-cut": Kind(
        what="the last line of the history is cut in half",
        damage=damage.cut_history,
        **{**_DAMAGE, "says": "ends with an incomplete line"},
    ),
}
"""By name. The last five kill the server first, and damage the newest files."""
