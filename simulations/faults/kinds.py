"""All kinds of faults: what they do in the process that they strike, and what is promised of each."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.settings import Flat
from simulations.faults.fault import Fault, Pair

LONG = 3600.0
MEETING = 30.0  # seconds that a process waits at its moment for the command, which then ends what it ends

Missing = Callable[[Fault], Sequence[Pair]]


def send(number: int, fault: Fault) -> None:
    """End this process as a power cut does, an operator, or Ctrl-C."""
    if number == signal.SIGINT:
        signal.signal(number, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
    os.kill(os.getpid(), number)
    if number != signal.SIGINT:  # which Python raises
        hang(fault)


kill, terminate, interrupt = (partial(send, number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT))


def fail(fault: Fault) -> None:
    """Raise what nobody expects."""
    raise RuntimeError(f"made to fail in round {fault.server_round}")


def hang(fault: Fault) -> None:
    time.sleep(LONG)


def limit_files(share: float, fault: Fault) -> None:
    """Let no file become larger than a share of a checkpoint: a limit of the system, so a real error."""
    sizes = [path.stat().st_size for path in (fault.run / "checkpoint").glob("*.safetensors")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * max(sizes)), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def start_another(fault: Fault) -> None:
    """Start a second server on the run's folder, wait for its end, and show what it printed."""
    done = subprocess.run(server_of(fault, resume=True), capture_output=True, text=True, check=False)
    print(f"another server ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}", flush=True)


def server_of(fault: Fault, *, resume: bool) -> list[str]:
    """Return the command of a cell's server."""
    return [sys.executable, "-m", "simulations.faults.apps", fault.folder, *(["--resume"] if resume else [])]


def meet(fault: Fault) -> None:
    """Wait here until the command has ended what this fault is about: it may be this very process."""
    deadline = time.monotonic() + MEETING
    while not (fault.path / "done").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _newest(run: Path) -> Path:
    return max((run / "checkpoint").glob("round-*.json"))


def _tensors(run: Path) -> Path:
    return _newest(run).with_suffix(".safetensors")


def _cut(path: Path) -> None:
    """Cut the last line of a file in half, or one that has no lines."""
    *lines, last = path.read_bytes().splitlines(keepends=True) if path.suffix == ".jsonl" else [path.read_bytes()]
    path.write_bytes(b"".join(lines) + last[: len(last) // 2])


def _flip(path: Path) -> None:
    """Turn one bit."""
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of fault, and what is promised of it.

    ``missing`` returns the replies that the fault costs: the model has to be, bit for bit, that of a run in which these
    never came. It is None where chance decides.
    """

    what: str  # what happens, for the table
    actor: Literal["client", "server", "grid", "none"]  # whom it strikes: the grid shows it a node that goes
    act: Callable[[Fault], None] = kill  # what it does there; a grid does it itself
    missing: Missing | None = lambda fault: ()
    settings: Mapping[str, Flat] = field(default_factory=dict)  # how such a run differs
    on_ray: bool = False  # whether clients run in actors of Ray, not in the server's process
    restarts: bool = False  # whether the server ends of it and is started again
    damage: Callable[[Path], None] | None = None  # what happens to the run's files in between
    whole: bool = False  # whether `after` is when the checkpoint has been written, not when half of it has been
    last: bool = False  # in the last round, where `after` is when half of the final model has been written
    says: str = ""  # what the logs have to say: a regular expression
    reason: str = ""  # what the record of the round has to say of the client
    check: Callable[[RoundRecord, Fault], str] = lambda record, fault: ""  # returns what else is wrong with the record
    # under a SuperLink: which process is killed while the one that is struck waits
    ends: Literal["", "client", "supernode", "server", "superlink"] = ""


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


_client = partial(Kind, actor="client", on_ray=True)
_node = partial(Kind, actor="grid", settings={"sample.min-nodes": 2})
_server = partial(Kind, actor="server", restarts=True)
_disk = partial(_server, says="cannot write .*Make room")
_damaged = partial(_server, whole=True, says=r"round-\d+.json is damaged .*trying the one before")

KINDS: Mapping[str, Kind] = {
    "none": Kind(what="nothing", actor="none"),
    "client-killed": _client(what="a client's process is killed", says="Another one is given its messages"),
    "client-raises": Kind(
        what="a client raises an error",
        actor="client",
        act=fail,
        missing=in_its_round,
        reason="error 2: .*made to fail",
    ),
    "client-hangs": _client(
        what="a client hangs beyond the deadline", act=hang, missing=in_its_round, reason="no reply in time"
    ),
    "reply-late": Kind(
        what="a reply comes a round late",
        actor="grid",
        missing=in_its_round,
        says="a reply of node .* is dropped",
        reason="no reply in time",
    ),
    "spare-hangs": _client(
        what="one of four hangs where three are enough",
        act=hang,
        missing=None,
        settings={"sample.fraction": 0.75, "sample.spare": 0.3},
        check=reached_the_floor,
    ),
    "too-few": Kind(
        what="a client raises where all are needed",
        actor="client",
        act=fail,
        settings={"sample.min-replies": 4},
        restarts=True,
        says="3 of 4 clients gave a usable reply, expected at least 4",
    ),
    "node-joins": _node(what="a node joins", missing=until_then),
    "node-leaves": _node(what="a node leaves for good", missing=from_then_on),
    "node-returns": _node(what="a node leaves, and is back in the next round", missing=in_its_round),
    "server-killed": _server(what="the server is killed"),
    "server-terminated": _server(what="the server gets SIGTERM", act=terminate),
    "server-interrupted": _server(what="the server gets SIGINT", act=interrupt),
    "killed-at-end": _server(what="the server is killed in the last round", last=True),
    "two-servers": Kind(
        what="a second server is started on the folder",
        actor="server",
        act=start_another,
        says="another server ended with exit code 2(?s:.*)another process",
    ),
    "disk-full": _disk(what="no byte fits on the disk", act=partial(limit_files, 0)),
    "disk-short": _disk(what="half of a checkpoint fits on the disk", act=partial(limit_files, 0.5)),
    "checkpoint-cut": _damaged(what="killed, and its checkpoint cut in half", damage=lambda run: _cut(_tensors(run))),
    "checkpoint-bit": _damaged(
        what="killed, and a bit of its checkpoint turned", damage=lambda run: _flip(_tensors(run))
    ),
    "checkpoint-lost": _damaged(
        what="killed, and its checkpoint's tensors gone", damage=lambda run: _tensors(run).unlink()
    ),
    "manifest-cut": _damaged(
        what="killed, and its checkpoint's JSON cut in half", damage=lambda run: _cut(_newest(run))
    ),
    "history-cut": _damaged(
        what="killed, and its history's last line cut in half",
        damage=lambda run: _cut(run / "history.jsonl"),
        says="ends with an incomplete line",
    ),
    "client-app-killed": Kind(
        what="a node's client process is killed", actor="client", act=meet, missing=in_its_round, ends="client"
    ),
    "supernode-killed": Kind(
        what="a SuperNode is killed, and started again", actor="client", act=meet, missing=None, ends="supernode"
    ),
    "server-app-killed": _server(what="the ServerApp's process is killed", act=meet, ends="server"),
    "superlink-killed": _server(what="the SuperLink's machine dies", act=meet, ends="superlink"),
}
"""By name. The last four are under a SuperLink."""


def names_of(*, deployed: bool) -> list[str]:
    """Return the kinds that strike a run on this machine's own processes, or those under a SuperLink."""
    return [name for name, kind in KINDS.items() if kind.actor != "none" and bool(kind.ends) == deployed]
