"""The process of a run's server: our own app on a ``LocalGrid``, with a fault that strikes it."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from heterofl_flwr.app.server_app import run
from heterofl_flwr.app.task import task_of
from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.federation.records import Progress, RoundCallback
from heterofl_flwr.grids import LocalGrid
from heterofl_flwr.runs import checkpoint, models
from heterofl_flwr.runs.files import write_atomic
from heterofl_flwr.settings import Flat, from_flat, to_flat
from simulations.faults.fault import VARIABLE, Fault
from simulations.faults.grid import Unsteady
from simulations.faults.kinds import KINDS

CLIENTS = "simulations.faults.client:app"
FAILED = 2
INTERRUPTED = 130


class Watcher(RoundCallback):
    """Notes when a round's state is saved."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def on_round_end(self, progress: Progress) -> bool:
        """Reach the moment after the checkpoint, where that is the fault's."""
        kind, number = KINDS[self._fault.kind], progress.record.server_round
        self._fault.note("saved", number)
        if kind.actor == "server" and kind.whole and self._fault.strikes("after", number):
            kind.act(self._fault)
        return False


def settings_of(fault: Fault, *, resume: bool) -> Mapping[str, Flat]:
    """Return the settings of a small run on the digits."""
    settings = {
        "num-rounds": fault.num_rounds,
        "seed": fault.seed,
        "mix": "a1-e1",
        "assignment": "fix",
        "model.name": "mlp",
        "model.hidden": "16",
        "train.epochs": 1,
        "evaluate.every": 0,
        "engine.name": "plain",  # the same bits in one process and in several
        "engine.timeout": fault.deadline,
        "sample.fraction": 1.0,
        "sample.min-nodes": fault.clients,
        "run.callbacks": "",
        "run.dir": str(fault.run),
        "run.resume": resume,
    }
    return to_flat(from_flat({**settings, **KINDS[fault.kind].settings}))


def serve(folder: str, resume: bool) -> None:
    """Run the server, or go on with its run, and end this process with the exit code of the command ``heterofl``."""
    os.environ[VARIABLE] = folder
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    fault = Fault.read(folder)
    kind, config = KINDS[fault.kind], settings_of(fault, resume=resume)
    try:
        with (
            half_written(fault),
            LocalGrid(CLIENTS, fault.clients, processes=kind.processes, run_config=config) as grid,
        ):
            run(Unsteady(grid, fault), task_of(config), [Watcher(fault)])
            fault.note("ended", fault.num_rounds)
    except HeteroFLError as error:
        print(f"heterofl: {error}", flush=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("heterofl: interrupted", flush=True)
        sys.exit(INTERRUPTED)


@contextmanager
def half_written(fault: Fault) -> Iterator[None]:
    """Let the fault strike when half of what a round, or the run, leaves behind is written."""
    kind = KINDS[fault.kind]
    if kind.actor != "server" or kind.whole:
        yield
        return
    module, name = (models, "a") if kind.last else (checkpoint, f"round-{fault.server_round:06d}")
    with mock.patch.object(module, "write_atomic", _halting(fault, f"{name}.safetensors", kind.act)):
        yield


def _halting(fault: Fault, name: str, act: Callable[[Fault], None]) -> Callable[[Path, bytes], None]:
    def write(path: Path, data: bytes) -> None:
        if path.name == name and fault.strikes("after", fault.server_round):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Where write_atomic has a file that is not whole yet.
            path.with_name(f".{name}.{os.getpid()}.tmp").write_bytes(data[: len(data) // 2])
            act(fault)
        write_atomic(path, data)

    return write


if __name__ == "__main__":
    serve(sys.argv[1], "--resume" in sys.argv[2:])
