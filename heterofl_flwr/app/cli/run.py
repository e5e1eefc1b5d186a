"""``heterofl run``: a federated run on this machine, or on a Ray cluster."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heterofl_flwr.app.cli import Subparsers, add_command
from heterofl_flwr.app.cli.results import show_tables
from heterofl_flwr.app.cli.settings import read_assignments, read_config
from heterofl_flwr.errors import ConfigError

if TYPE_CHECKING:
    from heterofl_flwr.app.launch.request import Request, Share

EXPLAIN = """
Train one global model over virtual clients of unequal size, through Flower. All settings have keys:
'heterofl settings' lists them. The exit code is 0 only if the run did all that it was to do.
"""
EXAMPLES = """
examples:
  heterofl run                                          20 clients on scikit-learn's digits
  heterofl run --data cifar10 --mix a-e --set data.split=non-iid-2
  heterofl run --rounds 20 --out runs/mine              and then: heterofl run --resume runs/mine --rounds 40
  heterofl run --app path/to/flower/app --clients 10    any other Flower app, with a true exit code
  RAY_ADDRESS=host:6379 heterofl run --clients 1000     on a Ray cluster
"""
HOW = {"grid": None, "gpus": "auto", "cpus": 1, "parallel": None}
"""What the options of how to run are by default."""

HISTORY = "history.jsonl"
WINDOW = 64
"""Messages under way at once, where no setting tells: the server's memory then does not grow with the clients."""


def add(subparsers: Subparsers) -> None:
    """Add this command."""
    summary = "train, and leave a folder with everything about it"
    this = add_command(subparsers, "run", run, summary, EXPLAIN, EXAMPLES)
    what = this.add_argument_group("what")
    what.add_argument("--data", metavar="NAME", help="short for --set data.name=NAME")
    what.add_argument("--mix", metavar="MIX", help="short for --set mix=MIX, such as a1-b1-c1-d1-e1 or a1-e9")
    what.add_argument("--rounds", type=int, metavar="N", help="short for --set num-rounds=N")
    what.add_argument("--seed", type=int, metavar="N", help="short for --set seed=N")
    what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting; repeatable")
    what.add_argument("--config", type=Path, metavar="FILE", help="settings in a TOML file; the options above go first")
    what.add_argument("--clients", type=int, metavar="N", help="virtual clients; by default 20 for digits, else 100")
    what.add_argument("--out", type=Path, metavar="DIR", help="the run's folder; by default runs/<data>-<time>")
    what.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    what.add_argument("--app", type=Path, metavar="DIR", help="another Flower app, in place of this package's own")
    this.set_defaults(**HOW)
    how = this.add_argument_group("how")
    how.add_argument(
        "--grid",
        choices=("local", "ray"),
        help="local: processes of this machine; ray: Ray's, by default where RAY_ADDRESS or --gpus SHARE is given",
    )
    how.add_argument("--gpus", metavar="SHARE", help="of a GPU for each client; auto measures it; 0: none")
    how.add_argument("--cpus", type=int, metavar="N", help="cores for each client; by default 1")
    how.add_argument("--parallel", type=int, metavar="N", help="at most this many clients at once")
    how.add_argument("--log", action="store_true", help="show Flower's log instead of a line for each round")


def run(args: argparse.Namespace) -> int:
    """Run it; return 0 only if it did all that it was to do."""
    from heterofl_flwr.app.launch.preflight import LaunchNote
    from heterofl_flwr.app.launch.running import LOG, RunError, run_request
    from heterofl_flwr.runs.origin import command_known, own_command

    request = build_request(args)
    if args.app is None:
        finished = _check_run(request)
        if finished:
            print(finished)
            return 0
        request = replace(request, share=_measure_share(args, request))
        LaunchNote(request.clients, request.config).write(request.out)
    print(f"{request.clients} clients; folder {request.out}", flush=True)
    try:
        with command_known(own_command()):
            run_request(request, log=args.log or bool(args.app))
    except KeyboardInterrupt:
        how = [f"--{name}={value}" for name, usual in HOW.items() if (value := getattr(args, name)) != usual]
        again = shlex.join(["heterofl", "run", "--resume", str(request.out), *how])
        raise KeyboardInterrupt(*([] if args.app else [f"go on with: {again}"])) from None
    except RunError as error:
        print(f"heterofl: the run failed: {error}\n  the whole log: {request.out / LOG}", file=sys.stderr)
        return 1
    if args.app is None:
        show_tables(request.out)
        print(f"report: {request.out / 'report.html'}")
    return 0


def build_request(args: argparse.Namespace) -> "Request":
    """Return what the arguments ask for, where this machine can give it; nothing is started or written."""
    from heterofl_flwr.app.launch.preflight import CLUSTER, LaunchNote
    from heterofl_flwr.app.launch.request import Request
    from heterofl_flwr.settings import CLIENTS, from_flat, short_name, to_flat

    _check(args)
    share = _read_share(args)
    grid = args.grid or ("ray" if CLUSTER in os.environ or share.gpus else "local")
    now = _given_settings(args)
    if args.app:
        out = _choose_folder(args, args.app.resolve().name)
        return Request(config=now, out=out, clients=args.clients or 2, share=share, app=args.app.resolve(), grid=grid)
    begun, before = _resumed_settings(args)
    given = {**before, **now}
    settings = from_flat(given)
    out = _choose_folder(args, Path(short_name(settings.data.name)).name.replace(":", "-"))
    if not args.resume and (out / HISTORY).exists():
        raise ConfigError(f"{out} holds a run already: go on with it (--resume {out}), or choose another folder")
    note = LaunchNote.read(out)
    clients = args.clients or (note.clients if note else CLIENTS.get(short_name(settings.data.name), 100))
    data, root = Path(settings.data.name).expanduser(), settings.data.root or os.environ.get("HETEROFL_DATA", "")
    config = to_flat(settings) | {
        "run.dir": str(out),
        "run.resume": begun,
        # Clients run elsewhere.
        "data.root": str(Path(root).expanduser().resolve()) if root else "",
        "data.name": str(data.resolve()) if data.is_dir() else settings.data.name,
    }
    if "sample.min-nodes" not in given:
        config["sample.min-nodes"] = clients  # Flower starts the server before the nodes
    if "engine.window" not in given:
        config["engine.window"] = WINDOW
    if args.gpus != "auto" and "engine.device" not in now:
        config["engine.device"] = "auto" if share.gpus else "cpu"
    return Request(config=config, out=out, clients=clients, share=share, grid=grid)


def _choose_folder(args: argparse.Namespace, name: str) -> Path:
    """Return the run's folder; one that cannot be written to raises ``ConfigError``."""
    from heterofl_flwr.app.launch.preflight import check_folder

    chosen: Path = args.resume or args.out or Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    out = chosen.expanduser().resolve()
    check_folder(out, "--out")
    return out


def _resumed_settings(args: argparse.Namespace) -> tuple[bool, Mapping[str, Any]]:
    """Return whether the run to resume has begun, and its settings; before it began, they are in its note."""
    from heterofl_flwr.app.launch.preflight import LaunchNote
    from heterofl_flwr.runs import RunFolder

    if not args.resume:
        return False, {}
    folder = RunFolder(args.resume)
    note = None if folder.started else LaunchNote.read(args.resume)
    return folder.started, note.config if note and note.config else folder.settings()


def _check(args: argparse.Namespace) -> None:
    from heterofl_flwr.app.launch.preflight import check_folder

    if args.out and args.resume:
        raise ConfigError("--out and --resume both name the run's folder; name it once")
    if args.resume and args.app:
        raise ConfigError("--resume is for this package's own app; another app has its own way to go on")
    if args.resume:
        check_folder(args.resume, "--resume")
    for name in ("clients", "cpus", "parallel"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; expected an integer of 1 or more")


def _check_run(request: "Request") -> str:
    """Raise what is wrong with a run of this package's own app; say so where it has come to its end already."""
    from heterofl_flwr.app.launch.preflight import check_task
    from heterofl_flwr.app.server_app import find_start
    from heterofl_flwr.app.task import task_of
    from heterofl_flwr.runs import RunFolder

    if (here := str(Path.cwd())) not in sys.path:  # functions that settings name may lie there
        sys.path.insert(0, here)
    task = task_of(request.config)
    folder = RunFolder(request.out)
    if request.out.exists():
        with folder.lock():
            pass  # no other process runs there
    start = find_start(folder, task.settings)
    if not start.finished:
        check_task(task, request.clients)
    return start.finished


def _given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given: those of the file, of the short options and of ``--set``."""
    short = {"data.name": args.data, "mix": args.mix, "num-rounds": args.rounds, "seed": args.seed}
    return {
        **(read_config(args.config) if args.config else {}),
        **{key: value for key, value in short.items() if value is not None},
        **read_assignments(args.set),
    }


def _read_share(args: argparse.Namespace) -> "Share":
    """Return what each client gets of the machine, as far as that was said."""
    from heterofl_flwr.app.launch.preflight import check_share
    from heterofl_flwr.app.launch.request import Share

    if args.gpus != "auto" and not re.fullmatch(r"0?\.\d+|\d+(\.0*)?", args.gpus):
        raise ConfigError(f"--gpus is {args.gpus!r}; expected auto, a share such as 0.25, or a whole number")
    share = Share(cpus=args.cpus, gpus=0.0 if args.gpus == "auto" else float(args.gpus), at_once=args.parallel)
    check_share(share)
    return share


def _measure_share(args: argparse.Namespace, request: "Request") -> "Share":
    """Return what each client gets of the machine; its share of a GPU is measured where none was said."""
    from heterofl_flwr.app.launch import gpus

    no_gpu = request.grid == "local" or not gpus.devices() or request.config["engine.device"] == "cpu"
    if args.gpus != "auto" or no_gpu:
        return request.share
    clients = args.parallel or request.clients
    planned = gpus.plan(gpus.measure(request.config), clients=clients, cores=gpus.cores(), cpus=args.cpus)
    print(f"a client gets {planned.gpus:g} of a GPU: {planned.at_once} at once", flush=True)
    return planned
