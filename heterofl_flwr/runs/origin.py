"""The origin of a result: the command, the commit of the code and the machine that ran it."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

import torch

UNKNOWN = "unknown"
CHANGED = "-dirty"  # follows the commit where the package's files were not those of the commit
COMMAND = "HETEROFL_COMMAND"  # the environment variable that holds what the user typed, for the processes of a run
HIDDEN = "***"  # stands for what is secret in a command

_FLOWERS_OWN = ("flwr-", "flower-")
_WORKERS = ("joblib.", "ray.", "default_worker")
_NAMES = r"(?:\w*token|(?:api-?)?key|passw(?:or)?d|secret|credentials?|auth)s?"
_SECRET_NAME = re.compile(rf"(?:^|[-_.]){_NAMES}$", re.IGNORECASE)
_ASSIGNED = re.compile(rf"((?:^|[-_.=\s]){_NAMES}=)\S+", re.IGNORECASE)
# Hugging Face, GitHub, OpenAI and Amazon; JSON web tokens; long random words.
_SECRET = re.compile(
    r"\b(?:hf_|gh[a-z]_|github_pat_|sk-|AKIA|eyJ)[\w.-]{12,}"
    r"|\b(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{32,}\b"
    r"|(?<=://)[^/@\s]+(?=@)"
)

PACKAGE = Path(__file__).resolve().parents[1]


@cache
def commit() -> str:
    """Return the commit of this package's code, with ``CHANGED`` where files of the package differ from it.

    The first call decides: a process keeps the code that it has loaded, whatever is committed meanwhile.
    """
    found = (commit_of(checkout, PACKAGE.name) for checkout in (PACKAGE.parent, _editable()) if checkout)
    return next(filter(None, found), UNKNOWN)


def command(run_config: Mapping[str, object] = MappingProxyType({})) -> str:
    """Return the command that the user typed for this run: as ``command_known`` has it, else ``own_command``."""
    return os.environ.get(COMMAND) or own_command(run_config)


def own_command(run_config: Mapping[str, object] = MappingProxyType({})) -> str:
    """Return the command that the user typed to start this process, without secrets.

    It is never that of a process which Flower, Ray or joblib has started: those have tokens among their arguments. Of
    one that ``flwr run`` has started, ``run_config`` has the settings that the command changed.
    """
    name = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", "")
    program = Path(sys.argv[0]).name
    if program.startswith(_FLOWERS_OWN):
        words = without_secrets([f"{key}={json.dumps(value)}" for key, value in run_config.items()])
        return shlex.join(["flwr", "run", ".", *(["--run-config", " ".join(words)] if words else [])])
    if name.startswith(_WORKERS) or program.startswith(_WORKERS):
        return UNKNOWN
    typed = sys.argv[0] if program.endswith(".py") else program  # one types an installed command by its name alone
    start = ["python", "-m", name.removesuffix(".__main__")] if name else [typed]
    return shlex.join([*start, *without_secrets(sys.argv[1:])])


@contextmanager
def command_known(text: str) -> Iterator[None]:
    """Set the command meanwhile, for this process and those that it starts."""
    before = {name: os.environ[name] for name in (COMMAND,) if name in os.environ}
    os.environ[COMMAND] = text
    try:
        yield
    finally:
        del os.environ[COMMAND]
        os.environ.update(before)


def without_secrets(words: Sequence[str]) -> list[str]:
    """Return the arguments of a command with tokens, keys and passwords hidden."""
    shown = []
    secret_next = False
    for word in words:
        name, equals, _ = word.partition("=")
        secret = _SECRET_NAME.search(name) is not None
        if secret_next and not word.startswith("-"):
            shown.append(HIDDEN)
        elif secret and equals:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(_SECRET.sub(HIDDEN, _ASSIGNED.sub(rf"\1{HIDDEN}", word)))
        secret_next = secret and not equals and word.startswith("-")
    return shown


def device_name(device: torch.device) -> str:
    """Return a device as a report names it: GPUs with their model."""
    return f"{device} ({_gpu_names()})" if device.type == "cuda" else str(device)


@cache
def machine() -> str:
    """Return processor, number of cores and GPUs."""
    path = Path("/proc/cpuinfo")
    known = re.search(r"^model name\s*:(.*)", path.read_text(errors="replace"), re.MULTILINE) if path.exists() else None
    processor = known[1].strip() if known else platform.processor() or platform.machine()
    # Asking torch for a GPU's name would open a context on it, in a process that may need none.
    number = torch.cuda.device_count()
    return f"{processor}, {os.cpu_count()} cores, {f'{number} x {_gpu_names()}' if number else 'no GPU'}"


def commit_of(checkout: Path, package: str) -> str | None:
    """Return the commit of a checkout that holds the package in its top folder; None where there is no such."""
    git = ("git", "-C", str(checkout))
    found = _ask(*git, "rev-parse", "--show-toplevel", "HEAD")
    # A package installed below someone else's repository is not part of it.
    if (
        found is None
        or Path(found.splitlines()[0]).resolve() != checkout.resolve()
        or not (checkout / package).is_dir()
    ):
        return None
    return found.splitlines()[1] + (CHANGED if _ask(*git, "status", "--porcelain", "--", package) else "")


def _editable() -> Path | None:
    """Return the checkout of an editable install: Flower runs a copy of it, which has no commit of its own."""
    try:
        text = metadata.distribution("heterofl-flwr").read_text("direct_url.json") or ""
        url = urlsplit(json.loads(text)["url"])
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None
    return Path(unquote(url.path)) if url.scheme == "file" else None


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
