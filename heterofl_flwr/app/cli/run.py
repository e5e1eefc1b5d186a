"""``heterofl run``: a federated run on this machine, or on a Ray cluster."""

import argparse
import os
import secrets
import shlex
import sys
from datetime import datetime
from importlib import import_module
from pathlib import Path

from heterofl_flwr.app.cli.main import HOW
from heterofl_flwr.app.cli.report import show_results
from heterofl_flwr.app.launch import preflight, running
from heterofl_flwr.app.launch.request import CLUSTER, Request, read_app
from heterofl_flwr.app.server_app import find_start
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.common.errors import ConfigError, extra, name_faults, printable
from heterofl_flwr.data.known import short_name
from heterofl_flwr.data.load import absolute_paths
from heterofl_flwr.report import RunFolder
from heterofl_flwr.runs.origin import command
from heterofl_flwr.settings.auto_values import CLIENTS
from heterofl_flwr.settings.flat import from_flat, from_stored, read_assignments, read_config, to_flat

HISTORY = "history.jsonl"
WINDOW = 64
"""Messages under way at once, where no setting tells: the server's memory then does not grow with the clients."""


def run(args: argparse.Namespace) -> int:
    """Run it; return 0 only if it did all that it was to do."""
    request = build_request(args)
    if request.grid == "ray":
        with extra("simulation", "use --grid local"):  # not after the folder is there
            import_module("ray")
    if args.app is None:
        finished = _check_run(request)
        if finished:
            print(finished)
            return 0
    where = "on Ray" if request.grid == "ray" else "in this process (on all cores: --grid ray)"
    print(f"{request.clients} clients {where}; folder {request.out}", flush=True)
    try:
        command()  # the processes of the run then know it
        running.run_request(request, log=args.log or bool(args.app))
    except KeyboardInterrupt:
        if args.app or not RunFolder(request.out).started:
            raise
        how = [f"--{name}={value}" for name, usual in HOW.items() if (value := getattr(args, name)) != usual]
        again = shlex.join(["heterofl", "run", "--resume", str(request.out), *how])
        raise KeyboardInterrupt(f"go on with: {again}") from None
    except running.RunError as error:
        print(
            printable(f"heterofl: the run failed: {error}\n  the whole log: {request.out / running.LOG}"),
            file=sys.stderr,
        )
        return 1
    return 0 if args.app else _end(request)


def _end(request: Request) -> int:
    """Print what a run has come to; return the exit status."""
    show_results(request.out)
    last = next((own for own in reversed(RunFolder(request.out).history()) if own.evaluate_asked), None)
    if last is None or last.evaluate_answers:
        return 0
    why = name_faults("partition", last.evaluate_failures)
    said = f"heterofl: in round {last.server_round} no client evaluated the global model: {why}"
    print(printable(said), file=sys.stderr)
    return 1


def build_request(args: argparse.Namespace) -> Request:
    """Return what the arguments ask for, where this machine can give it; nothing is started or written."""
    if args.resume and args.app:
        raise ConfigError(
            f"--resume is for this package's own app, and --app is {args.app}: start it with --app alone, and let its "
            "ServerApp load the checkpoint (RunFolder.load_checkpoint)"
        )
    if args.grid == "local" and (args.cpus, args.parallel or 1) != (1, 1):
        raise ConfigError("--cpus and --parallel are for --grid ray; --grid local runs the clients in this process")
    on_ray = CLUSTER in os.environ or args.gpus or (args.cpus, args.parallel or 1) != (1, 1)
    how = {name: getattr(args, name) for name in HOW} | {"grid": args.grid or ("ray" if on_ray else "local")}
    now = {**(read_config(args.config) if args.config else {}), **read_assignments(args.set)}
    if args.app:
        app = args.app.resolve()
        return read_app(app, now, out=_choose_folder(args, app.name), clients=args.clients or 2, **how)
    for key, option in (("run.dir", "--out"), ("run.resume", "--resume")):
        if now.get(key):
            raise ConfigError(f"{key} is {now[key]!r}: here {option} FOLDER says it; leave the setting out")
    begun = args.resume is not None
    given = {**(to_flat(from_stored(RunFolder(args.resume).settings())) if begun else {}), **now}
    settings = from_flat(given)
    data = short_name(settings.data.name)
    out = _choose_folder(args, Path(data).name.replace(":", "-"))
    if not begun and (out / HISTORY).exists():
        own = shlex.quote(str(out))
        raise ConfigError(f"{out} holds a run already: go on with it (--resume {own}), or choose another folder")
    clients = _count_clients(args.clients, out, begun, CLIENTS.get(data, 100))
    name, root = absolute_paths(settings.data.name, settings.data.root)
    config = {**to_flat(settings), "data.name": name, "data.root": root, "run.dir": str(out), "run.resume": begun}
    if "sample.min-nodes" not in (now if args.clients else given):
        config["sample.min-nodes"] = clients  # Flower starts the server before the nodes
    if "engine.window" not in given:
        config["engine.window"] = WINDOW
    if args.gpus is not None and "engine.device" not in now:
        config["engine.device"] = "auto" if args.gpus else "cpu"
    return Request(config=config, out=out, clients=clients, **how)


def _count_clients(asked: int | None, out: Path, begun: bool, usual: int) -> int:
    """Return how many clients take part: in a run that has begun, as many as it has."""
    if not begun:
        return asked or usual
    has = RunFolder(out).about().get("clients") or asked
    if has is None:
        raise ConfigError(f"the run in {out} does not tell how many clients it has: name as many with --clients")
    if asked not in (has, None):
        raise ConfigError(f"--clients is {asked}, but the run in {out} has {has}; expected as many, or none")
    return has


def _choose_folder(args: argparse.Namespace, name: str) -> Path:
    # The last digits tell runs apart that begin in the same second.
    usual = Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
    chosen: Path = args.resume or args.out or usual
    return chosen.resolve()


def _check_run(request: Request) -> str:
    """Raise what is wrong with a run of this package's own app; say so where it has come to its end already."""
    workload, folder = load_workload(request.config), RunFolder(request.out)
    start = find_start(folder, workload.settings)
    if not start.finished:
        preflight.check_task(workload, request.clients)
        if workload.settings.sample.spare and request.grid == "local" and not workload.settings.devices.profile:
            print(
                "sample.spare: here all clients that are asked answer, so the spare ones count too; let some be late "
                "(devices.profile), or leave it out"
            )
        with folder.lock():
            pass  # the folder can be written to, and no other process runs there
    return start.finished
