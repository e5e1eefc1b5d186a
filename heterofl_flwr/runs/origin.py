"""Origin of a result: the command, the commit and versions of the code, and the machine."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from heterofl_flwr import __version__

UNKNOWN = "unknown"
CHANGED = "-dirty"  # suffix of the commit if files of the package differ from it
COMMAND = "HETEROFL_COMMAND"  # environment variable with the user's command, for the processes of a run

PACKAGE = Path(__file__).resolve().parents[1]


def add_start(before: Mapping[str, Any], facts: Mapping[str, object]) -> dict[str, Any]:
    """Return the facts of a run with those of its present start; ``before`` has the facts of earlier starts."""
    versions = {name: metadata.version(name) for name in ("flwr", "torch")}
    versions = {"heterofl-flwr": __version__, "python": platform.python_version(), **versions}
    earlier = before.get("versions", {})
    for name, now in versions.items():
        versions[name] = ", ".join(dict.fromkeys([*earlier.get(name, now).split(", "), now]))
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    start = {"starts": started, "commits": commit(), "machines": machine()}
    lists = {name: [*before.get(name, []), now] for name, now in start.items()}  # one entry for each start
    return {**before, "command": command(), **facts, "versions": versions, **lists}


def command() -> str:
    """Return the user's command, and store it in an environment variable for child processes."""
    program = Path(sys.argv[0]).name
    if program.startswith(("flwr-", "flower-")):  # started by Flower, with secret tokens among the arguments
        typed = ["flwr", "run", "."]
    else:
        typed = ["python", *sys.orig_argv[1:]] if sys.orig_argv[1:2] == ["-m"] else [program, *sys.argv[1:]]
    return os.environ.setdefault(COMMAND, shlex.join(typed))


@cache
def commit() -> str:
    """Return the commit of this package's code from ``commit_of``; ``UNKNOWN`` if ``commit_of`` returns None."""
    return commit_of(PACKAGE.parent, PACKAGE.name) or UNKNOWN


def commit_of(checkout: Path, package: str) -> str | None:
    """Return the commit of a git checkout, with the suffix ``CHANGED`` if files of the package differ from it.

    Return None if ``checkout`` is not the package's repository.
    """
    git = ("git", "-C", str(checkout))
    top, _, head = (_ask(*git, "rev-parse", "--show-toplevel", "HEAD") or "").partition("\n")
    # A package that is installed inside another repository is not part of it.
    if not head or Path(top).resolve() != checkout.resolve() or not (checkout / package).is_dir():
        return None
    return head + (CHANGED if _ask(*git, "status", "--porcelain", "--", package) else "")


def short_commit(commit: str) -> str:
    """Return the first seven characters of a commit, with the suffix ``CHANGED`` if ``commit`` has it."""
    return commit[:7] + (CHANGED if commit.endswith(CHANGED) else "")


@cache
def machine() -> str:
    """Return this machine's processor, number of cores and GPUs as text."""
    path = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:(.*)", path.read_text(errors="replace"), re.MULTILINE) if path.exists() else None
    processor = model[1].strip() if model else platform.processor() or platform.machine()
    # torch would create a CUDA context to get a GPU's name, and this process may not need one.
    number = torch.cuda.device_count()
    return f"{processor}, {os.cpu_count()} cores, {f'{number} x {_gpu_names()}' if number else 'no GPU'}"


def device_name(device: torch.device) -> str:
    """Return the name of a device for a report."""
    return f"{device} ({_gpu_names()})" if device.type == "cuda" else str(device)


def _gpu_names() -> str:
    names = _ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "GPU"
    return " / ".join(dict.fromkeys(names.splitlines()))


def _ask(program: str, *arguments: str) -> str | None:
    """Return the output of a program; None if it is missing or fails."""
    call = [shutil.which(program) or program, *arguments]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=60).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
