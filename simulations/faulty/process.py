"""The processes in which servers run.

The first of a cell is a fork of one that has loaded torch, which saves only time. One that is started after a fault is
a new interpreter, because its time counts.
"""

import multiprocessing
import os
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from simulations.faulty.fault import VARIABLE, Fault

LONGEST = 300.0  # seconds after which a server counts as hanging
ROOT = Path(__file__).parents[2]
PRELOADED = ["simulations.faulty.server", "sklearn.datasets", "torch._dynamo"]


def start_forked(fault: Fault) -> int:
    """Run a cell's server in a fork; return its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(fault.folder, theirs), daemon=True)
    process.start()
    theirs.close()
    reader = threading.Thread(target=_copy, args=(ours, fault.path / "log.txt"))
    reader.start()
    process.join(LONGEST)
    if process.is_alive():
        process.kill()
        process.join()
    reader.join()
    return process.exitcode or 0


def start_anew(fault: Fault) -> int:
    """Go on with a cell's run in a new interpreter; return its exit code."""
    with (fault.path / "log.txt").open("ab") as log:
        words = [sys.executable, "-m", "simulations.faulty.server", fault.folder, "--resume"]
        environment = {**os.environ, VARIABLE: fault.folder}
        try:
            return subprocess.run(
                words, stdout=log, stderr=log, check=False, cwd=ROOT, env=environment, timeout=LONGEST
            ).returncode
        except subprocess.TimeoutExpired:
            return -9


def _serve(folder: str, out: Connection) -> None:
    from simulations.faulty.server import serve

    # A pipe, not a file: a disk that is full would swallow what is said of it.
    for descriptor in (1, 2):
        os.dup2(out.fileno(), descriptor)
    out.close()
    serve(folder, False)


def _copy(source: Connection, path: Path) -> None:
    with source, path.open("ab") as log:
        while piece := _read(source):
            log.write(piece)


def _read(source: Connection) -> bytes:
    return os.read(source.fileno(), 65536)
