"""What a fault does in the process that it strikes."""

import os
import resource
import signal
import subprocess
import sys
import time

from simulations.faulty.fault import Fault

LONG = 3600.0
MEETING = 30.0  # seconds that a process waits at its moment for the command, which then ends what it ends


def kill(fault: Fault) -> None:
    """End this process as a power cut does."""
    del fault
    _signal(signal.SIGKILL)


def terminate(fault: Fault) -> None:
    """End this process as an operator does."""
    del fault
    _signal(signal.SIGTERM)


def interrupt(fault: Fault) -> None:
    """End this process as Ctrl-C does."""
    del fault
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
    os.kill(os.getpid(), signal.SIGINT)


def fail(fault: Fault) -> None:
    """Raise what nobody expects."""
    raise RuntimeError(f"made to fail in round {fault.server_round}")


def hang(fault: Fault) -> None:
    """Do nothing any more."""
    del fault
    time.sleep(LONG)


def fill_disk(fault: Fault) -> None:
    """Let no byte be written to any file from now on: a limit of the system, so a real error."""
    del fault
    _limit_files(0)


def fill_disk_nearly(fault: Fault) -> None:
    """Let no file become larger than half of a checkpoint."""
    sizes = [path.stat().st_size for path in (fault.run / "checkpoint").glob("*.safetensors")]
    _limit_files(max(sizes) // 2)


def start_another(fault: Fault) -> None:
    """Start a second server on the run's folder, wait for its end, and show what it said."""
    words = [sys.executable, "-m", "simulations.faulty.server", fault.folder, "--resume"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    print(f"another server ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}", flush=True)


def meet(fault: Fault) -> None:
    """Wait here until the command has ended what this fault is about: it may be this very process."""
    deadline = time.monotonic() + MEETING
    while not (fault.path / "done").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _signal(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(LONG)


def _limit_files(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
