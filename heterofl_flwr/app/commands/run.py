"""``heterofl run``: a federated run on this machine, or on a Ray cluster."""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heterofl_flwr.errors import ConfigError

if TYPE_CHECKING:  # loading torch takes seconds, and 'heterofl run --help' needs none of it
    from heterofl_flwr.app.launch.launcher import Outcome
    from heterofl_flwr.app.launch.request import Request, Share

EXPLAIN = """
Train one global model over virtual clients of unequal size, through Flower and Ray. All settings have keys:
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
LAUNCH = Path("logs", "launch.json")
HISTORY = "history.jsonl"
WINDOW = 64
"""Messages under way at once, where no setting tells: the server's memory then does not grow with the clients."""


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this command."""
    this = subparsers.add_parser(
        "run",
        help="train, and leave a folder with everything about it",
        description=EXPLAIN,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    how = this.add_argument_group("how")
    how.add_argument("--grid", choices=("ray", "local"), default="ray", help="local: processes without Ray, at once")
    how.add_argument(
        "--gpus", default="auto", metavar="SHARE", help="of a GPU for each client; auto measures it; 0: none"
    )
    how.add_argument("--cpus", type=int, default=1, metavar="N", help="cores for each client; by default 1")
    how.add_argument("--parallel", type=int, metavar="N", help="at most so many clients at once")
    how.add_argument("--log", action="store_true", help="show Flower's log instead of a line for each round")
    this.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run it; return 0 only if it did all that it was to do."""
    from heterofl_flwr.app.launch.session import run_session

    _check(args)
    request = request_of(args)
    print(f"{request.clients} clients; folder {request.out}", flush=True)
    outcome = run_session(request, grid=args.grid, log=args.log or bool(args.app))
    if not outcome.good:
        _complain(outcome, request.out)
        return 1
    if args.app is None:
        _show_result(request.out)
    return 0


def request_of(args: argparse.Namespace) -> "Request":
    """Return what the arguments ask for."""
    from heterofl_flwr.app.launch.request import Request

    given = _given(args)
    if args.app:
        out = _folder(args, args.app.resolve().name)
        share = _share(args, given, args.clients or 2) if args.gpus != "auto" else _cores(args)
        return Request(config=given, out=out, clients=args.clients or 2, share=share, app=args.app.resolve())
    from heterofl_flwr.settings import CLIENTS, from_flat, short_name, to_flat

    settings = from_flat(given)
    out = _folder(args, Path(short_name(settings.data.name)).name.replace(":", "-"))
    if not args.resume and (out / HISTORY).exists():
        raise ConfigError(f"{out} holds a run already: go on with it (--resume {out}), or choose another folder")
    clients = args.clients or _clients_before(out) or CLIENTS.get(short_name(settings.data.name), 100)
    config = to_flat(settings) | {
        "run.dir": str(out),
        "run.resume": bool(args.resume),
        "data.root": _absolute(settings.data.root or os.environ.get("HETEROFL_DATA", "")),
        "data.name": _data_name(settings.data.name),
    }
    if "sample.min-nodes" not in given:
        config["sample.min-nodes"] = clients  # Flower starts the server before the nodes
    if "engine.window" not in given:
        config["engine.window"] = WINDOW
    _remember(out, clients)
    return Request(config=config, out=out, clients=clients, share=_share(args, config, clients))


def _check(args: argparse.Namespace) -> None:
    if args.out and args.resume:
        raise ConfigError("--out and --resume both name the run's folder; name it once")
    if args.resume and args.app:
        raise ConfigError("--resume is for this package's own app; another app has its own way to go on")
    for name in ("clients", "cpus", "parallel"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; expected an integer of 1 or more")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given, those of a run that goes on first."""
    from heterofl_flwr.app.commands.assign import assignments, read_config
    from heterofl_flwr.report import RunFolder

    before = dict(RunFolder(args.resume).settings()) if args.resume else {}
    config = read_config(args.config) if args.config else {}
    short = {"data.name": args.data, "mix": args.mix, "num-rounds": args.rounds, "seed": args.seed}
    return {
        **before,
        **config,
        **{key: value for key, value in short.items() if value is not None},
        **assignments(args.set),
    }


def _folder(args: argparse.Namespace, name: str) -> Path:
    chosen: Path | None = args.resume or args.out
    if chosen is None:
        chosen = Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    return chosen.expanduser().resolve()


def _share(args: argparse.Namespace, config: Mapping[str, Any], clients: int) -> "Share":
    """Return what each client gets of the machine."""
    from heterofl_flwr.app.launch import gpus
    from heterofl_flwr.app.launch.request import Share

    if args.gpus != "auto":
        if not re.fullmatch(r"0?\.\d+|\d+(\.0*)?", args.gpus):
            raise ConfigError(f"--gpus is {args.gpus!r}; expected auto, a share such as 0.25, or a whole number")
        return Share(cpus=args.cpus, gpus=float(args.gpus), at_once=args.parallel)
    if args.grid == "local" or not gpus.devices() or config.get("engine.device") == "cpu":
        return _cores(args)
    planned = gpus.plan(gpus.measure(config), clients=args.parallel or clients, cores=gpus.cores(), cpus=args.cpus)
    print(f"a client gets {planned.gpus:g} of a GPU: {planned.at_once} at once", flush=True)
    return planned


def _cores(args: argparse.Namespace) -> "Share":
    from heterofl_flwr.app.launch.request import Share

    return Share(cpus=args.cpus, at_once=args.parallel)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve()) if path else ""


def _data_name(name: str) -> str:
    """Return the name of a data set; that of a folder in full, as clients run elsewhere."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def _remember(out: Path, clients: int) -> None:
    path = out / LAUNCH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"clients": clients}), encoding="utf-8")


def _clients_before(out: Path) -> int | None:
    try:
        return int(json.loads((out / LAUNCH).read_text(encoding="utf-8"))["clients"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _complain(outcome: "Outcome", out: Path) -> None:
    lines = [f"heterofl: the run {outcome.status}: {outcome.cause}", *(f"    {line}" for line in outcome.trace)]
    print("\n".join([*lines, f"  the whole log: {out / 'logs' / 'flower.log'}"]), file=sys.stderr)


def _show_result(out: Path) -> None:
    from heterofl_flwr.app.commands.report import show_tables

    show_tables(out)
    print(f"report: {out / 'report.html'}")
