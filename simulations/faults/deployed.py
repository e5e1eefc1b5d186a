"""Cells under a SuperLink with TLS and two SuperNodes, which all cells share."""

import os
import signal
import subprocess
import time

from heterofl_flwr.report import RunFolder
from simulations.faults.apps import CLIENT, SERVER, settings_of
from simulations.faults.cells import Cells, Outcome, State, assess, down
from simulations.faults.fault import VARIABLE, Fault
from simulations.faults.kinds import KINDS
from tests.deployment.processes import Deployment, kill, kill_with_all

NODES = ("first", "second")
LONGEST = 600.0
PAUSE = 1.0


class DeployedCells(Cells):
    """Makes cells of few rounds, all in one deployment."""

    def __init__(self, deployment: Deployment, *, deadline: float, seed: int) -> None:
        super().__init__(deployment.folder, deadline=deadline, seed=seed, num_rounds=3, clients=len(NODES))
        self._now, self._deployment = deployment.folder / "now", deployment
        deployment.environment |= {"OMP_NUM_THREADS": "1", VARIABLE: str(self._now)}
        self._superlink = deployment.start_superlink()
        deployment.register(*NODES)
        self._nodes = [self._start_node(number) for number in range(len(NODES))]

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
        run_id = self._submit(fault, resume=False)
        self._deployment.wait_for(lambda: self._event(fault, "fault"), f"the moment of {name}", LONGEST)
        self._end(kind.ends, fault)
        (fault.path / "done").touch()
        if kind.ends == "superlink":
            self._superlink = self._deployment.start_superlink()
        broken: list[str] = []
        if kind.restarts:
            broken += down(fault, kind)
            run_id = self._submit(fault, resume=True)
        self._wait(fault)
        status, details = self._deployment.wait_for_end(run_id, LONGEST)
        broken += [] if status == "finished:completed" else [f"the run is {status}: {details}"]
        return assess(fault, self.expected(fault), broken)

    def _submit(self, fault: Fault, *, resume: bool) -> str:
        config = {**settings_of(fault, resume=resume), "sample.wait": LONGEST}
        return self._deployment.submit(config, CLIENT, SERVER)

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

    def _start_node(self, number: int) -> subprocess.Popen[bytes]:
        config = f'level="{"ae"[number]}" partition-id={number} num-partitions={len(NODES)}'
        return self._deployment.start_node(NODES[number], config)

    def _event(self, fault: Fault, what: str) -> int | None:
        """Return the number of the last event of a name."""
        return next((event.number for event in reversed(fault.events()) if event.what == what), None)

    def _end(self, what: str, fault: Fault) -> None:
        """Kill a process."""
        if what == "superlink":
            kill_with_all(self._superlink)
        elif what == "supernode":
            kill(self._nodes[fault.partition])
        elif pid := self._event(fault, what):
            os.kill(pid, signal.SIGKILL)
