"""The origin of a result: the command, the commit of the code and the machine that ran it."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

UNKNOWN = "unknown"
CHANGED = "-dirty"  # follows the commit where the package's files were not those of the commit
COMMAND = "HETEROFL_COMMAND"  # the environment variable that tells the processes of a run what the user typed

PACKAGE = Path(__file__).resolve().parents[1]


def command() -> str:
    """Return the command that the user typed; the processes that this one starts from now on return it too."""
    program = Path(sys.argv[0]).name
    if program.startswith(("flwr-", "flower-")):  # Flower started it, with tokens among its arguments
        typed = ["flwr", "run", "."]
    else:
        typed = ["python", *sys.orig_argv[1:]] if sys.orig_argv[1:2] == ["-m"] else [program, *sys.argv[1:]]
    return os.environ.setdefault(COMMAND, shlex.join(typed))


@cache
def commit() -> str:
    """Return the commit of this package's code, with ``CHANGED`` where files of the package differ from it.

    The first call decides: a process keeps the code that it has loaded, whatever is committed meanwhile.
    """
    return commit_of(PACKAGE.parent, PACKAGE.name) or UNKNOWN


def commit_of(checkout: Path, package: str) -> str | None:
    """Return the commit of a checkout that holds the package in its top folder; None where there is no such."""
    git = ("git", "-C", str(checkout))
    top, _, head = (_ask(*git, "rev-parse", "--show-toplevel", "HEAD") or "").partition("\n")
    # A package installed below someone else's repository is not part of it.
    if not head or Path(top).resolve() != checkout.resolve() or not (checkout / package).is_dir():
        return None
    return head + (CHANGED if _ask(*git, "status", "--porcelain", "--", package) else "")


@cache
def machine() -> str:
    """Return processor, number of cores and GPUs."""
    path = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:(.*)", path.read_text(errors="replace"), re.MULTILINE) if path.exists() else None
    processor = model[1].strip() if model else platform.processor() or platform.machine()
    # Asking torch for a GPU's name would open a context on it, in a process that may need none.
    number = torch.cuda.device_count()
    return f"{processor}, {os.cpu_count()} cores, {f'{number} x {_gpu_names()}' if number else 'no GPU'}"


def device_name(device: torch.device) -> str:
    """Return a device as a report names it: GPUs with their model."""
    return f"{device} ({_gpu_names()})" if device.type == "cuda" else str(device)


def _gpu_names() -> str:
    names = _ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "GPU"
    return " / ".join(dict.fromkeys(names.splitlines()))


def _ask(program: str, *arguments: str) -> str | None:
    """Return what a program prints; None where it is missing or fails."""
    call = [shutil.which(program) or program, *arguments]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=60).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
