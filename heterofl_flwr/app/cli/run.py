"""``heterofl run``: a federated run on this machine, or on a Ray cluster; and ``heterofl report``."""

import argparse
import os
import re
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from heterofl_flwr.app.cli.main import HOW
from heterofl_flwr.app.cli.settings import read_assignments, read_config
from heterofl_flwr.app.launch import machine, preflight, running
from heterofl_flwr.app.launch.preflight import LaunchNote, check_folder, check_share
from heterofl_flwr.app.launch.request import CLUSTER, Request, Share
from heterofl_flwr.app.server_app import find_start
from heterofl_flwr.app.task import load_task
from heterofl_flwr.data.known import SOURCES
from heterofl_flwr.data.load import ROOT_VARIABLE
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.report import RunFolder, summary_table
from heterofl_flwr.runs.origin import command
from heterofl_flwr.settings import CLIENTS, Flat, from_flat, from_stored, short_name, to_flat

HISTORY = "history.jsonl"
WINDOW = 64
"""Messages under way at once, where no setting tells: the server's memory then does not grow with the clients."""


def run(args: argparse.Namespace) -> int:
    """Run it; return 0 only if it did all that it was to do."""
    request = build_request(args)
    if args.app is None:
        finished = _check_run(request)
        if finished:
            print(finished)
            return 0
        LaunchNote(request.clients, request.config).write(request.out)
    where = "on Ray" if request.grid == "ray" else "in this process (on all cores: --grid ray)"
    print(f"{request.clients} clients {where}; folder {request.out}", flush=True)
    try:
        command()  # the processes of the run then know it
        running.run_request(request, log=args.log or bool(args.app))
    except KeyboardInterrupt:
        how = [f"--{name}={value}" for name, usual in HOW.items() if (value := getattr(args, name)) != usual]
        again = shlex.join(["heterofl", "run", "--resume", str(request.out), *how])
        raise KeyboardInterrupt(*([] if args.app else [f"go on with: {again}"])) from None
    except running.RunError as error:
        print(f"heterofl: the run failed: {error}\n  the whole log: {request.out / running.LOG}", file=sys.stderr)
        return 1
    if args.app is None:
        _show_results(request.out, request.out / "report.html")
    return 0


def report(args: argparse.Namespace) -> int:
    """Write the report of a run, and print its tables."""
    from heterofl_flwr.report import write_report  # here, as it draws, which no other command needs

    _show_results(args.folder, write_report(RunFolder(args.folder)))
    return 0


def _show_results(path: Path, page: Path) -> None:
    folder = RunFolder(path)
    Console().print(summary_table(folder.history(), folder.costs()))
    print(f"report: {page}")


def build_request(args: argparse.Namespace) -> Request:
    """Return what the arguments ask for, where this machine can give it; nothing is started or written."""
    _check_options(args)
    share = Share(cpus=args.cpus, gpus=0.0 if args.gpus == "auto" else float(args.gpus), at_once=args.parallel)
    check_share(share)
    grid = args.grid or ("ray" if CLUSTER in os.environ or share not in (Share(), Share(at_once=1)) else "local")
    now = _read_given(args)
    if args.app:
        app = args.app.resolve()
        return Request(
            config=now, out=_choose_folder(args, app.name), clients=args.clients or 2, share=share, app=app, grid=grid
        )
    for key, option in (("run.dir", "--out"), ("run.resume", "--resume")):
        if now.get(key):
            raise ConfigError(f"{key} is {now[key]!r}: here {option} FOLDER says it; leave the setting out")
    begun, before = _read_resumed(args.resume) if args.resume else (False, {})
    given = {**before, **now}
    settings = from_flat(given)
    data = short_name(settings.data.name)
    out = _choose_folder(args, Path(data).name.replace(":", "-"))
    if not args.resume and (out / HISTORY).exists():
        own = shlex.quote(str(out))
        raise ConfigError(f"{out} holds a run already: go on with it (--resume {own}), or choose another folder")
    clients = _count_clients(args.clients, out, begun, CLIENTS.get(data, 100))
    config = to_flat(settings) | absolute_paths(settings.data.name, settings.data.root)
    config |= {"run.dir": str(out), "run.resume": begun}
    if "sample.min-nodes" not in (now if args.clients else given):
        config["sample.min-nodes"] = clients  # Flower starts the server before the nodes
    if "engine.window" not in given:
        config["engine.window"] = WINDOW
    if args.gpus != "auto" and "engine.device" not in now:
        config["engine.device"] = "auto" if share.gpus else "cpu"
    request = Request(config=config, out=out, clients=clients, share=share, grid=grid)
    return machine.with_gpus(request) if args.gpus == "auto" else request


def _check_options(args: argparse.Namespace) -> None:
    if args.out and args.resume:
        raise ConfigError("--out and --resume both name the run's folder; name it once")
    if args.resume and args.app:
        raise ConfigError("--resume is for this package's own app; another app has its own way to go on")
    if args.resume:
        check_folder(args.resume, "--resume")
    for name in ("clients", "cpus", "parallel"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; expected an integer of 1 or more")
    if args.grid == "local" and (args.cpus, args.parallel or 1) != (1, 1):
        raise ConfigError("--cpus and --parallel are for --grid ray; --grid local runs the clients in this process")
    if args.gpus != "auto" and not re.fullmatch(r"0?\.\d+|\d+(\.0*)?", args.gpus):
        raise ConfigError(f"--gpus is {args.gpus!r}; expected auto, a share such as 0.25, or a whole number")


def _read_given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the arguments give."""
    short = {"data.name": args.data, "mix": args.mix, "num-rounds": args.rounds, "seed": args.seed}
    return {
        **(read_config(args.config) if args.config else {}),
        **{key: value for key, value in short.items() if value is not None},
        **read_assignments(args.set),
    }


def _count_clients(asked: int | None, out: Path, begun: bool, usual: int) -> int:
    """Return how many clients take part: in a run that has begun, as many as it has."""
    note = LaunchNote.read(out)
    if begun and not note and not asked:
        raise ConfigError(f"the run in {out} does not tell how many clients it has: name as many with --clients")
    clients = asked or (note.clients if note else usual)
    if begun and note and clients != note.clients:
        raise ConfigError(f"--clients is {clients}, but the run in {out} has {note.clients}; expected as many, or none")
    return clients


def _choose_folder(args: argparse.Namespace, name: str) -> Path:
    """Return the run's folder; one that cannot be written to raises ``ConfigError``."""
    chosen: Path = args.resume or args.out or Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    out = chosen.resolve()
    check_folder(out, "--out")
    return out


def _read_resumed(path: Path) -> tuple[bool, dict[str, Any]]:
    """Return whether the run to resume has begun, and its settings; before it began, they are in its note."""
    folder = RunFolder(path)
    note = None if folder.started else LaunchNote.read(path)
    before = dict(note.config if note and note.config else folder.settings())
    from_stored(before)
    return folder.started, before


def absolute_paths(name: str, root: str) -> dict[str, Flat]:
    """Return the settings of where the data are as paths that hold elsewhere too, where clients run.

    A data set that we know is no folder, even if there is one of its name.
    """
    folder, root = os.path.expanduser(name), root or os.environ.get(ROOT_VARIABLE, "")
    is_folder = short_name(name) not in SOURCES and os.path.isdir(folder)
    return {
        "data.root": os.path.realpath(os.path.expanduser(root)) if root else "",
        "data.name": os.path.realpath(folder) if is_folder else name,
    }


def _check_run(request: Request) -> str:
    """Raise what is wrong with a run of this package's own app; say so where it has come to its end already."""
    if (here := str(Path.cwd())) not in sys.path:  # functions that settings name may lie there
        sys.path.append(here)  # last, as it may be a stranger's folder with a module such as json.py
    task = load_task(request.config)
    folder = RunFolder(request.out)
    if request.out.exists():
        with folder.lock():
            pass  # no other process runs there
    start = find_start(folder, task.settings)
    if not start.finished:
        preflight.check_task(task, request.clients)
    return start.finished
