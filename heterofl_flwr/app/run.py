"""Train one global model over virtual clients of unequal size, through Flower.

'heterofl settings' lists all settings. The exit code is 0 if every round was done and, in a run with evaluation,
at least one client replied to the final evaluation.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from heterofl_flwr.app.argument_types import read_count, read_path, read_share
from heterofl_flwr.app.report import lost_evaluation, show_results
from heterofl_flwr.app.trust import add_trust
from heterofl_flwr.common.errors import counted, extra, printable
from heterofl_flwr.common.user_code import named_modules

SUMMARY = "train, and leave a folder with everything about it"
EXAMPLES = """
examples:
  heterofl run                                          20 clients on scikit-learn's digits
  heterofl run --data cifar10 --mix a-e data.split=non-iid-2 train.lr=0.05
  heterofl run --rounds 20 --out runs/mine              and then: heterofl run --resume runs/mine --rounds 40
  heterofl run --app path/to/flower/app --clients 10    any other Flower app, with a true exit code
  RAY_ADDRESS=host:6379 heterofl run --clients 1000     on a Ray cluster
"""

HOW = MappingProxyType({"grid": None, "gpus": None, "cpus": 1, "parallel": None})
"""Default of each option about the clients' grid and resources."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``heterofl run``."""
    what = parser.add_argument_group("what")
    appends: dict[str, Any] = {"dest": "set", "action": "append", "default": []}
    for option, long in (
        ("--data", "data.name=NAME"),
        ("--mix", "mix=MIX, such as a1-b1-c1-d1-e1 or a1-e9"),
        ("--rounds", "num-rounds=N"),
        ("--seed", "seed=N"),
    ):
        key, metavar = long.partition(",")[0].split("=")
        what.add_argument(option, type=f"{key}={{}}".format, metavar=metavar, help=f"short for --set {long}", **appends)
    what.add_argument("--set", metavar="KEY=VALUE", help="any setting; --set may be left out", **appends)
    what.add_argument(
        "--config", type=read_path, metavar="FILE", help="settings in a TOML file; the options above override it"
    )
    what.add_argument(
        "--clients",
        type=read_count,
        metavar="N",
        help="virtual clients; by default 20 for digits, else 100; 2 with --app",
    )
    folder = what.add_mutually_exclusive_group()
    folder.add_argument("--out", type=read_path, metavar="DIR", help="the run's folder; by default runs/<data>-<time>")
    folder.add_argument("--resume", type=read_path, metavar="DIR", help="go on with the run in this folder")
    what.add_argument("--app", type=read_path, metavar="DIR", help="another Flower app, in place of this package's own")
    add_trust(what)
    parser.set_defaults(**HOW)
    how = parser.add_argument_group("how")
    where = "local: this process; ray: processes of Ray, by default with RAY_ADDRESS, --gpus, --cpus or --parallel"
    how.add_argument("--grid", choices=("local", "ray"), help=where)
    how.add_argument(
        "--gpus",
        type=read_share,
        metavar="SHARE",
        help="of a GPU for each client, on Ray; by default one, or less with --parallel; 0: none",
    )
    how.add_argument("--cpus", type=read_count, metavar="N", help="cores for each client, on Ray; by default 1")
    how.add_argument("--parallel", type=read_count, metavar="N", help="at most this many clients at once, on Ray")
    how.add_argument("--log", action="store_true", help="show Flower's log too")


def run(args: argparse.Namespace) -> int:
    """Run the app. Return ``FAILED`` if the run failed, else 0.

    If the app is this package's own, also print the results, and return ``FAILED`` if no client evaluated the global
    model in the last evaluation by clients.
    """
    # Imported here, as they load torch, which takes seconds.
    from heterofl_flwr.app import preflight, run_app
    from heterofl_flwr.app.main import FAILED
    from heterofl_flwr.app.request import SERVER_APP, build_request
    from heterofl_flwr.report import RunFolder
    from heterofl_flwr.runs.origin import command

    request = build_request(args)
    if request.grid == "ray":
        with extra("simulation", "use --grid local"):  # before the folder is created
            import_module("ray")
    if args.app is None and (finished := preflight.check_run(request)):
        print(finished)
        return 0
    where = "on Ray" if request.grid == "ray" else "in this process (on all cores: --grid ray)"
    print(f"{counted(request.clients, 'client')} {where}; folder {request.out}", flush=True)
    if args.app is None:
        print(f"resume with: {_resume_command(args, request.out, request.config)}", flush=True)
    try:
        command()  # stores the user's command in the environment, for the processes of the run
        run_app.run_request(request, log=args.log or bool(args.app))
    except KeyboardInterrupt:
        if args.app or not RunFolder(request.out).started:
            raise
        raise KeyboardInterrupt(f"resume with: {_resume_command(args, request.out, request.config)}") from None
    except run_app.RunError as error:
        print(
            printable(f"heterofl: the run failed: {error}\n  the whole log: {request.out / run_app.LOG}"),
            file=sys.stderr,
        )
        return FAILED
    return _report(Path(str(request.config["run.dir"]))) if request.server == SERVER_APP else 0


def _resume_command(args: argparse.Namespace, folder: Path, config: Mapping[str, object]) -> str:
    options = [f"--{name}={value}" for name, default in HOW.items() if (value := getattr(args, name)) != default]
    if args.resume:  # the folder lacks changed settings until the run has loaded its data
        options += [*(args.set or []), *([f"--config={args.config}"] if args.config else [])]
    trust = ["--trust"] if named_modules(config.values()) else []
    return shlex.join(["heterofl", "run", "--resume", str(folder), *options, *trust])


def _report(folder: Path) -> int:
    from heterofl_flwr.app.main import FAILED

    show_results(folder)
    fault = lost_evaluation(folder)
    if fault:
        print(printable(f"heterofl: {fault}"), file=sys.stderr)
    return FAILED if fault else 0
