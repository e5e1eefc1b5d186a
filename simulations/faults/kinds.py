"""All kinds of faults: what they do in the process that they strike, and what is promised of each."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.settings import Flat
from simulations.faults.fault import Fault, Pair

LONG = 3600.0
MEETING = 30.0  # seconds that a process waits at its moment for the command, which then ends what it ends

Actor = Literal["client", "server", "grid", "none"]
Ends = Literal["", "client", "supernode", "server", "superlink"]
Act = Callable[[Fault], None]
Missing = Callable[[Fault], Sequence[Pair]]
Check = Callable[[RoundRecord, Fault], str]
Damage = Callable[[Path], None]
"""Damages files in a run's folder."""


def kill(_: Fault) -> None:
    """End this process as a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(LONG)


def terminate(_: Fault) -> None:
    """End this process as an operator does."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LONG)


def interrupt(_: Fault) -> None:
    """End this process as Ctrl-C does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
    os.kill(os.getpid(), signal.SIGINT)


def fail(fault: Fault) -> None:
    """Raise what nobody expects."""
    raise RuntimeError(f"made to fail in round {fault.server_round}")


def hang(_: Fault) -> None:
    """Do nothing any more."""
    time.sleep(LONG)


def fill_disk(_: Fault) -> None:
    """Let no byte be written to any file from now on: a limit of the system, so a real error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fill_disk_nearly(fault: Fault) -> None:
    """Let no file become larger than half of a checkpoint."""
    sizes = [path.stat().st_size for path in (fault.run / "checkpoint").glob("*.safetensors")]
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) // 2, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def start_another(fault: Fault) -> None:
    """Start a second server on the run's folder, wait for its end, and show what it printed."""
    words = [sys.executable, "-m", "simulations.faults.apps", fault.folder, "--resume"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(f"another server ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}", flush=True)


def meet(fault: Fault) -> None:
    """Wait here until the command has ended what this fault is about: it may be this very process."""
    deadline = time.monotonic() + MEETING
    while not (fault.path / "done").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def flip_checkpoint(run: Path) -> None:
    """Turn one bit of the newest checkpoint's tensors."""
    path = _newest(run)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))


def cut_history(run: Path) -> None:
    """Cut the last line of the history in half."""
    path = run / "history.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]) + whole[-1][: len(whole[-1]) // 2])


def _newest(run: Path) -> Path:
    return max((run / "checkpoint").glob("round-*.json")).with_suffix(".safetensors")


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of fault, and what is promised of it.

    ``missing`` returns the replies that the fault costs: the model has to be, bit for bit, that of a run in which these
    never came. It is None where chance decides.
    """

    what: str  # what happens, for the table
    actor: Actor  # whom it strikes: a client, the server, or a node as the grid shows it
    act: Act = kill  # what it does there; a grid does it itself
    missing: Missing | None = lambda fault: ()
    settings: Mapping[str, Flat] = field(default_factory=dict)  # how such a run differs
    processes: int = 0  # worker processes of the clients; 0: they run in the server's
    restarts: bool = False  # whether the server ends of it and is started again
    damage: Damage | None = None  # what happens to its files in between
    whole: bool = False  # whether `after` is when the checkpoint has been written, not when half of it has been
    last: bool = False  # in the last round, where `after` is when half of the final model has been written
    says: str = ""  # what the logs have to say: a regular expression
    reason: str = ""  # what the record of the round has to say of the client
    check: Check = lambda record, fault: ""  # returns what else is wrong with the record of the round
    ends: Ends = ""  # under a SuperLink: which process is killed while the one that is struck waits


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


def _client(what: str, reason: str, act: Act = kill) -> Kind:
    return Kind(what=what, actor="client", act=act, missing=in_its_round, processes=2, reason=reason)


def _node(what: str, missing: Missing) -> Kind:
    return Kind(what=what, actor="grid", missing=missing, settings={"sample.min-nodes": 2})


def _server(what: str, act: Act = kill) -> Kind:
    return Kind(what=what, actor="server", act=act, restarts=True)


def _disk(what: str, act: Act) -> Kind:
    return Kind(what=what, actor="server", act=act, restarts=True, says="cannot write .*Make room")


def _damaged(what: str, how: Damage, says: str = r"round-\d+.json is damaged .*trying the one before") -> Kind:
    return Kind(what=what, actor="server", restarts=True, whole=True, damage=how, says=says)


def _deployed(what: str, actor: Actor, ends: Ends, missing: Missing | None) -> Kind:
    return Kind(what=what, actor=actor, act=meet, ends=ends, missing=missing, restarts=actor == "server")


KINDS: Mapping[str, Kind] = {
    "none": Kind(what="nothing", actor="none"),
    "client-killed": _client("a client's process is killed", "ended by SIGKILL"),
    "client-raises": _client("a client raises an error", "error 2: .*made to fail", fail),
    "client-hangs": _client("a client hangs beyond the deadline", "no reply in time", hang),
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
        act=hang,
        missing=None,
        processes=2,
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
    "node-joins": _node("a node joins", until_then),
    "node-leaves": _node("a node leaves for good", from_then_on),
    "node-returns": _node("a node leaves, and is back in the next round", in_its_round),
    "server-killed": _server("the server is killed"),
    "server-terminated": _server("the server gets SIGTERM", terminate),
    "server-interrupted": _server("the server gets SIGINT", interrupt),
    "killed-at-end": Kind(what="the server is killed in the last round", actor="server", restarts=True, last=True),
    "two-servers": Kind(
        what="a second server is started on the folder",
        actor="server",
        act=start_another,
        says="another server ended with exit code 2(?s:.*)another process",
    ),
    "disk-full": _disk("no byte fits on the disk", fill_disk),
    "disk-short": _disk("half of a checkpoint fits on the disk", fill_disk_nearly),
    "checkpoint-cut": _damaged("killed, and its checkpoint cut in half", lambda run: _cut(_newest(run))),
    "checkpoint-bit": _damaged("killed, and a bit of its checkpoint turned", flip_checkpoint),
    "checkpoint-lost": _damaged("killed, and its checkpoint's tensors gone", lambda run: _newest(run).unlink()),
    "manifest-cut": _damaged(
        "killed, and its checkpoint's JSON cut in half", lambda run: _cut(_newest(run).with_suffix(".json"))
    ),
    "history-cut": _damaged(
        "killed, and its history's last line cut in half", cut_history, "ends with an incomplete line"
    ),
    "client-app-killed": _deployed("a node's client process is killed", "client", "client", in_its_round),
    "supernode-killed": _deployed("a SuperNode is killed, and started again", "client", "supernode", None),
    "server-app-killed": _deployed("the ServerApp's process is killed", "server", "server", lambda fault: ()),
    "superlink-killed": _deployed("the SuperLink's machine dies", "server", "superlink", lambda fault: ()),
}
"""By name. The last four are under a SuperLink."""


def names_of(*, deployed: bool) -> list[str]:
    """Return the kinds that strike a run on this machine's own processes, or those under a SuperLink."""
    return [name for name, kind in KINDS.items() if kind.actor != "none" and bool(kind.ends) == deployed]
