"""``python -m tests.faults.server FOLDER ACT PLACE``: the process of a server in which a fault acts."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

from simulations.program import status_of
from tests.faults.runs import Fault, play


def send(number):
    """End this process as a power cut does, an operator, or Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    os.kill(os.getpid(), number)
    time.sleep(3600)


def limit_files(folder, share):
    """Let no file become larger than a share of a checkpoint: a limit of the system, so a real error."""
    largest = max(path.stat().st_size for path in (folder / "checkpoint").glob("*.safetensors"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * largest), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def main():
    folder = Path(sys.argv[1])
    acts = {
        "killed": lambda: send(signal.SIGKILL),
        "terminated": lambda: send(signal.SIGTERM),
        "interrupted": lambda: send(signal.SIGINT),
        "disk-full": lambda: limit_files(folder, 0.5),
    }
    fault = Fault(sys.argv[3], act=acts[sys.argv[2]])
    sys.exit(status_of("heterofl", lambda: play(folder, fault) and None))


if __name__ == "__main__":
    main()
