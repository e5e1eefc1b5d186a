"""Cells under a SuperLink with TLS and two SuperNodes, which all cells share."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import Flat
from simulations.deployment import Deployment, kill, kill_with_all
from simulations.faults.apps import CLIENT, SERVER, settings_of
from simulations.faults.cells import Cells, Outcome, State, assess, down
from simulations.faults.fault import VARIABLE, Fault
from simulations.faults.kinds import KINDS, Ends

NODES = ("first", "second")
LONGEST = 600.0
PAUSE = 1.0


class DeployedCells(Cells):
    """Makes cells of few rounds; a context manager that ends all processes."""

    def __init__(self, folder: Path, *, deadline: float, seed: int) -> None:
        super().__init__(folder, deadline=deadline, seed=seed, num_rounds=3, clients=len(NODES))
        self._now = folder / "now"
        self._stack = ExitStack()
        self._deployment = Deployment(folder, {"OMP_NUM_THREADS": "1", VARIABLE: str(self._now)})

    def __enter__(self) -> Self:
        """Start the SuperLink and the nodes."""
        self._stack.enter_context(self._deployment)
        self._superlink = self._deployment.start_superlink()
        self._deployment.register(*NODES)
        self._nodes = [self._start_node(number) for number in range(len(NODES))]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        self._stack.close()

    def expected(self, fault: Fault) -> State | None:
        """Return the model that a run must end with: without the replies that its own history lacks.

        How long a node stays away depends on the machine.
        """
        if KINDS[fault.kind].missing is not None:
            return super().expected(fault)
        return self.without(
            [
                (partition, record.server_round)
                for record in RunFolder(fault.run).history()
                for partition in range(len(NODES))
                if partition not in record.rates or partition in record.failures
            ]
        )

    def run(self, name: str, moment: str) -> Outcome:
        """Let a fault strike a run, start again what it ended, and assess it."""
        fault, kind = self.fault(name, moment), KINDS[name]
        fault.write()
        self._now.unlink(missing_ok=True)
        self._now.symlink_to(fault.path)
        run_id = self._deployment.submit(self._config(fault, resume=False), CLIENT, SERVER)
        self._deployment.wait_for(lambda: self._event(fault, "fault"), f"the moment of {name}", LONGEST)
        self._end(kind.ends, fault)
        (fault.path / "done").touch()
        faults: list[str] = []
        if kind.ends == "superlink":
            self._superlink = self._deployment.start_superlink()
        if kind.restarts:
            faults += down(fault, kind)
            run_id = self._deployment.submit(self._config(fault, resume=True), CLIENT, SERVER)
        self._wait(fault)
        status, details = self._deployment.wait_for_end(run_id, LONGEST)
        faults += [] if status == "finished:completed" else [f"the run is {status}: {details}"]
        return assess(fault, self.expected(fault), faults)

    def _wait(self, fault: Fault) -> None:
        """Wait for the end of a run; as a supervisor does, start nodes again that end.

        A SuperLink refuses a node whose key it believes to be connected, for a minute after that one was killed.
        """
        deadline = time.monotonic() + LONGEST
        while not self._event(fault, "ended") and time.monotonic() < deadline:
            time.sleep(PAUSE)
            for number, node in enumerate(self._nodes):
                if node.poll() is not None:
                    self._nodes[number] = self._start_node(number)

    def _config(self, fault: Fault, *, resume: bool) -> Mapping[str, Flat]:
        return {**settings_of(fault, resume=resume), "sample.wait": LONGEST}

    def _start_node(self, number: int) -> subprocess.Popen[bytes]:
        level = "ae"[number]
        return self._deployment.start_node(
            NODES[number], f'level="{level}" partition-id={number} num-partitions={len(NODES)}'
        )

    def _event(self, fault: Fault, what: str) -> int | None:
        """Return the number of the last event of a name."""
        return next((event.number for event in reversed(fault.events()) if event.what == what), None)

    def _end(self, what: Ends, fault: Fault) -> None:
        """Kill a process."""
        if what == "superlink":
            kill_with_all(self._superlink)
        elif what == "supernode":
            kill(self._nodes[fault.partition])
        elif pid := self._event(fault, what):
            os.kill(pid, signal.SIGKILL)
