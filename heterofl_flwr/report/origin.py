"""Where a result comes from: the commit of the code and the machine that ran it."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

UNKNOWN = "unknown"
CHANGED = "-dirty"
"""Follows the commit where the package's files were not those of the commit."""

PACKAGE = Path(__file__).resolve().parents[1]


@cache
def commit() -> str:
    """Return the commit of this package's code, with ``CHANGED`` where files of the package differ from it.

    The first call decides: a process keeps the code that it has loaded, whatever is committed meanwhile.
    """
    found = (commit_of(checkout, PACKAGE.name) for checkout in (PACKAGE.parent, _editable()) if checkout)
    return next(filter(None, found), UNKNOWN)


def command() -> str:
    """Return the command that started this process, as one would type it: a module that was run is named as one."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    words = sys.argv if spec is None else ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    return shlex.join(words)


@cache
def machine() -> str:
    """Return processor, number of cores and GPUs."""
    return f"{_processor()}, {os.cpu_count()} cores, {_gpus()}"


def commit_of(checkout: Path, package: str) -> str | None:
    """Return the commit of a checkout that holds the package in its top folder; None where there is no such."""
    top = _ask("git", "-C", str(checkout), "rev-parse", "--show-toplevel")
    # A package installed below someone else's repository is not part of it.
    if top is None or Path(top).resolve() != checkout.resolve() or not (checkout / package).is_dir():
        return None
    head = _ask("git", "-C", str(checkout), "rev-parse", "HEAD")
    changes = _ask("git", "-C", str(checkout), "status", "--porcelain", "--", package)
    return None if head is None else head + (CHANGED if changes else "")


def _editable() -> Path | None:
    """Return the checkout of an editable install: Flower runs a copy of it, which has no commit of its own."""
    try:
        text = metadata.distribution("heterofl-flwr").read_text("direct_url.json") or ""
        url = urlsplit(json.loads(text)["url"])
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
    return Path(unquote(url.path)) if url.scheme == "file" else None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _gpus() -> str:
    # Asking torch for a name would open a context on the GPU, in a process that may need none.
    number = torch.cuda.device_count()
    if not number:
        return "no GPU"
    names = _ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "GPU"
    return f"{number} x {' / '.join(dict.fromkeys(names.splitlines()))}"


def _ask(program: str, *arguments: str) -> str | None:
    """Return what a program prints; None where it is missing or fails."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
