"""Hostile nodes against a SuperLink with TLS: the cases, how one is run, and what must come of it."""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flwr.app import Error, Message
from safetensors.torch import load_file

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import server_app
from heterofl_flwr.app.launch.request import CLIENT_APP
from heterofl_flwr.app.task import load_task
from heterofl_flwr.compat import ErrorCode
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.federation.round import SILENT
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import Flat, from_flat, to_flat
from simulations.deployment import Deployment, kill_with_all
from simulations.fuzz.attacks import ATTACKS, LIES, REFUSED, STALLS, WIRE_BOMBS, Attack
from simulations.fuzz.crowd import Crowd, Member, round_of

LONGEST = 1200.0
IN_MEMORY = ":flwr-in-memory:"  # a database on a busy disk is locked for seconds whenever a node announces much
GRACE = 5.0
MEBIBYTE = 2**20
DIGITS: Mapping[str, Flat] = {
    "mix": "a1-b1-e1",
    "assignment": "fix",
    "model.name": "cnn",
    "model.hidden": "8,16",
    "model.norm": "sbn",
    "train.epochs": 2,
    "train.labels": "sent",
    "engine.name": "plain",  # the same bits everywhere
    "evaluate.central": False,
    "sample.fraction": 1.0,
    "sample.wait": LONGEST,
    "run.callbacks": "",
}
LARGE: Mapping[str, Flat] = {"model.name": "mlp", "model.hidden": "1024,1024", "model.norm": "none", "mix": "a1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run with honest and hostile nodes."""

    name: str  # for the table
    attacks: Sequence[str]  # of each node that attacks; the good ones come first
    honest: int = 4  # how many good nodes there are
    own_supernodes: bool = False  # whether the good nodes are Flower's own processes, not members of the crowd
    rounds: int = 3  # of the run; a deadline in seconds
    deadline: float = 60.0
    settings: Mapping[str, Flat] = field(default_factory=dict)  # how the run differs from the others
    as_before: bool = False  # whether the server may have a tenth more memory than in the case before, and no more

    @property
    def members(self) -> list[Member]:
        """The nodes, the good ones first."""
        attacks, levels = [*["none"] * self.honest, *self.attacks], "a" if "mix" in self.settings else "abe"
        return [
            Member(
                f"node-{own}",
                {"level": levels[own % len(levels)], "partition-id": own, "num-partitions": len(attacks)},
                attack,
            )
            for own, attack in enumerate(attacks)
        ]

    @property
    def refused(self) -> bool:
        """Whether nothing of what these nodes send may count."""
        return not any(name in LIES for name in self.attacks)

    def config(self, run: Path) -> Mapping[str, Flat]:
        """Return the settings of the run."""
        own = {
            "num-rounds": self.rounds,
            "engine.timeout": self.deadline,
            "sample.min-nodes": self.honest + len(self.attacks),
            "sample.min-replies": min(self.honest, 4),
            "evaluate.every": self.rounds,
            "run.dir": str(run),
        }
        return to_flat(from_flat({**DIGITS, **own, **self.settings}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a case.

    ``server`` and ``superlink`` are the most bytes that the processes had in memory, ``equal`` whether the model is,
    bit for bit, that of the run in which the nodes that attack were silent; None where they may count.
    """

    case: Case
    status: str
    history: Sequence[RoundRecord]
    server: int
    superlink: int
    equal: bool | None

    @property
    def longest(self) -> float:
        """The seconds of the longest round that trains alone; before the first, nodes have to come and are asked."""
        training = [record for record in self.history if record.server_round > 1 and not record.evaluate_asked]
        return max((record.seconds for record in training), default=float("inf"))

    @property
    def unseen(self) -> set[str]:
        """The attacks whose replies must be refused, of which the server had none: their nodes were only silent."""
        failed = [failure for record in self.history for failure in record.failures.items()]
        seen = {self.case.members[partition].attack for partition, reason in failed if reason != SILENT}
        return {name for name in self.case.attacks if name in REFUSED and REFUSED[name].answers} - seen

    def faults(self, server_before: int) -> list[str]:
        """Return what is not as promised; in the case before, the server had so many bytes in memory."""
        server, before = self.server // MEBIBYTE, server_before // MEBIBYTE
        broken = {
            f"the run is {self.status}": self.status != "finished:completed",
            "the model is another": self.equal is False,
            f"nothing came of {', '.join(sorted(self.unseen))}": bool(self.unseen),
            f"a round took {self.longest:.0f} s": self.longest > self.case.deadline + GRACE,
            f"the server had {server} MiB, before {before}": self.case.as_before and self.server > 1.1 * server_before,
        }
        return [fault for fault, holds in broken.items() if holds]

    @property
    def row(self) -> str:
        """What came of the case, for a table in Markdown."""
        accuracy = self.history[-1].evaluate.get("global-accuracy", float("nan")) if self.history else float("nan")
        values = [
            self.case.name,
            self.status.rpartition(":")[2],
            f"{self.longest:.0f} of {self.case.deadline:.0f}",
            f"{self.server // MEBIBYTE}",
            f"{self.superlink // MEBIBYTE}",
            {True: "equal", False: "**other**", None: "none" if self.case.refused else "counts"}[self.equal],
            f"{100 * accuracy:.1f}",
        ]
        return f"| {' | '.join(values)} |"


BOMBED = [*WIRE_BOMBS, "all but one object"]
CASES: Mapping[str, Sequence[Case]] = {
    "refused": [Case(name="all that is refused", attacks=[*REFUSED])],
    "stalls": [Case(name="10 of 20 stall", honest=10, attacks=([*STALLS] * 4)[:10])],
    "bombs": [
        Case(name="54 good nodes", attacks=["none"] * 50, settings=LARGE, deadline=100.0),
        Case(name="50 bombs of 54", attacks=(BOMBED * 13)[:50], settings=LARGE, deadline=100.0, as_before=True),
    ],
    "lies": [Case(name=f"{name}, 1 of 8", attacks=[name], honest=7, rounds=5) for name in ("none", *LIES)],
}
"""By group."""

HEADER = """| nodes that attack | run | s a round, of | server, MiB | SuperLink, MiB | model | reported accuracy, % |
|---|---|---|---|---|---|---|"""


def run_case(case: Case, parent: Path) -> Result:
    """Run a case, and compare its model where it must be that of silence."""
    folder = parent / re.sub(r"\W+", "-", case.name)
    folder.mkdir(parents=True)
    run = RunFolder(folder / "run")
    with Deployment(folder, {"OMP_NUM_THREADS": "1"}) as deployment:
        deployment.database = IN_MEMORY
        superlink = deployment.start_superlink()
        deployment.register(*(member.name for member in case.members))
        start_nodes(case, deployment)
        run_id = deployment.submit(case.config(run.path))
        server, status = watch(deployment, run_id)
        peak = peak_of(superlink.pid)
        kill_with_all(superlink)
    equal = None
    if case.refused and status == "finished:completed":
        equal = models(run) == models(run_silent(case, folder / "silent"))
    return Result(case=case, status=status, history=run.history(), server=server, superlink=peak, equal=equal)


def start_nodes(case: Case, deployment: Deployment) -> None:
    own = case.honest if case.own_supernodes else 0
    for member in case.members[:own]:
        words = (
            f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in member.config.items()
        )
        deployment.start_node(member.name, " ".join(words))
    crowd = Crowd(f"127.0.0.1:{deployment.port}", str(deployment.keys), CLIENT_APP, case.members[own:])
    deployment.popen([sys.executable, "-m", "simulations.fuzz.crowd", json.dumps(asdict(crowd))], "crowd")


def run_silent(case: Case, folder: Path) -> RunFolder:
    """Return the run, without a network, in which nodes give no answer where none may count."""
    config, members = case.config(folder), case.members
    node_config = [member.config for member in members].__getitem__
    with Silent(CLIENT_APP, len(members), run_config=config, node_config=node_config) as grid:
        grid.attacks = [ATTACKS[member.attack] for member in members]
        server_app.run(grid, load_task(config))
    return RunFolder(folder)


class Silent(LocalGrid):
    """A grid some of whose nodes give no answer where none of it may count, or an error.

    Who gave none is not asked for moments and metrics in the same round; who was refused is, and may answer truly.
    """

    attacks: Sequence[Attack]  # by partition
    _round = 0

    def send_and_receive(self, messages: Sequence[Message], *, timeout: float | None = None) -> list[Message]:  # type: ignore[override]
        """Send messages, and return the replies of nodes that are not silent."""
        asked = {message.metadata.dst_node_id: message for message in messages}
        attacks = dict(zip(self.get_node_ids(), self.attacks, strict=True))
        self._round = max([self._round, *map(round_of, messages)])  # a query names no round
        replies = []
        for reply in super().send_and_receive(list(messages), timeout=timeout):
            message, attack = asked[reply.metadata.src_node_id], attacks[reply.metadata.src_node_id]
            if message.metadata.message_type not in attack.kinds or not 0 < attack.silent_from <= self._round:
                replies.append(reply)
            elif attack.answers:
                replies.append(Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "refused"), reply_to=message))
        return replies


def watch(deployment: Deployment, run_id: str) -> tuple[int, str]:
    """Wait for the end of a run; return the most memory that its ServerApp had, and its status."""
    peak, until = 0, time.monotonic() + LONGEST
    while not deployment.has_ended(run_id) and time.monotonic() < until:
        peak = max([peak, *map(peak_of, deployment.numbers_of("flwr-serverapp"))])
        time.sleep(0.2)
    return peak, deployment.wait_for_end(run_id, 1)[0]


def peak_of(number: int) -> int:
    """Return the most bytes that a process has had in memory; 0 if it has ended."""
    with suppress(OSError):
        if match := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{number}/status").read_text(encoding="utf-8")):
            return int(match[1]) * 1024
    return 0


def models(run: RunFolder) -> dict[str, bytes]:
    """Return the bits of a run's final models."""
    return {
        f"{path.stem}/{name}": value.numpy().tobytes()
        for path in sorted(run.models.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }
