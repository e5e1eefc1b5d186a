"""A run with all its attempts: where memory is short, it goes on with fewer clients at once."""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from heterofl_flwr.app.launch import gpus, memory
from heterofl_flwr.app.launch.bundle import read_app
from heterofl_flwr.app.launch.launcher import Outcome, Watch, launch
from heterofl_flwr.app.launch.progress import Lines, Screen
from heterofl_flwr.app.launch.request import Request
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.methods.callbacks import RoundRecord
from heterofl_flwr.report import RunFolder


def run_session(request: Request, *, grid: str, log: bool) -> Outcome:
    """Run it and show how it goes: its rounds, or Flower's log."""
    read_app(request)  # before anything is started
    if grid == "local":
        return run_here(request, log=log)
    while True:
        outcome = launch(request, _watch(request, log))
        if outcome.shortage is None:
            return outcome
        try:
            request = with_fewer(request)
        except ConfigError as error:
            return replace(outcome, cause=f"{outcome.shortage}, and {error}")
        at_once = request.share.at_once
        print(f"heterofl: {outcome.shortage}; going on with {at_once} at once", file=sys.stderr, flush=True)


def with_fewer(request: Request) -> Request:
    """Return the request with half as many clients at once; our own app goes on where it was."""
    if "RAY_ADDRESS" in os.environ:
        raise ConfigError("how many clients a cluster runs at once is not known here: raise --gpus or --cpus")
    share = request.share.fewer(gpus.cores(), gpus.devices())
    if request.app is not None:
        return replace(request, share=share)
    return replace(request, share=share, config={**request.config, "run.resume": RunFolder(request.out).started})


def run_here(request: Request, *, log: bool = False) -> Outcome:
    """Run it in this process and its workers."""
    from heterofl_flwr.app.launch.local import run_local

    try:
        with _flower_log(request.out / "logs" / "flower.log", shown=log):
            run_local(request)
    except Exception as error:  # whatever an app raises is how its run ended
        short = memory.in_log([str(error)])
        trace = () if isinstance(error, HeteroFLError) else tuple(traceback.format_exc().splitlines()[-5:])
        name = "" if isinstance(error, HeteroFLError) else f"{type(error).__name__}: "
        return Outcome("failed", f"{name}{error}", trace, short)
    return Outcome("completed")


@contextmanager
def _flower_log(path: Path, *, shown: bool) -> Iterator[None]:
    """Let Flower log to a file, or as well to where it does already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("flwr")
    before = list(logger.handlers)
    file = logging.FileHandler(path, mode="w", encoding="utf-8")
    logger.handlers = [*before, file] if shown else [file]
    try:
        yield
    finally:
        logger.handlers = before
        file.close()


def _watch(request: Request, log: bool) -> Watch:
    if log:
        lines = Lines(request.out / "logs" / "flower.log", sys.stdout)

        def show(records: list[RoundRecord]) -> None:
            lines.show()

        return show
    screen = Screen(int(request.config["num-rounds"]))

    def show_rounds(records: list[RoundRecord]) -> None:
        for record in records:
            screen.show(record)

    return show_rounds
