"""The ServerApp for ``flwr run``."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from heterofl_flwr.app.callbacks import build_callbacks, evaluate_global
from heterofl_flwr.app.report import show_results
from heterofl_flwr.app.workload import Workload, load_workload
from heterofl_flwr.common.errors import ConfigError, MissingExtraError, counted, extra
from heterofl_flwr.common.options import pick, values
from heterofl_flwr.common.user_code import load_function
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.data.known import short_name
from heterofl_flwr.federation.callbacks import RoundCallback, RunState
from heterofl_flwr.federation.options import Averaging, Slicing, Training
from heterofl_flwr.federation.start_summary import count_releases
from heterofl_flwr.grids import Windowed
from heterofl_flwr.grids.device_costs import EDGE, Devices, Profiles, TrainingCost
from heterofl_flwr.grids.queued import QueuedGrid
from heterofl_flwr.grids.simulated_devices import SimulatedDevices
from heterofl_flwr.report import Console, RunFolder, write_report
from heterofl_flwr.runs.class_counts import write_counts
from heterofl_flwr.runs.folder import new_path
from heterofl_flwr.runs.origin import device_name
from heterofl_flwr.settings.auto_values import preset
from heterofl_flwr.settings.definitions import AGGREGATORS, Settings
from heterofl_flwr.settings.method_name import run_title
from heterofl_flwr.settings.renamed import from_stored
from heterofl_flwr.settings.server_stages import parse_stages
from heterofl_flwr.settings.validate import INCIDENTAL, to_flat
from heterofl_flwr.strategies.fedh2l import FedH2L
from heterofl_flwr.strategies.heterofl import HeteroFL
from heterofl_flwr.strategies.start import FederationStrategy
from heterofl_flwr.training import give_back_freed_memory
from heterofl_flwr.transport.compat import set_log_format
from heterofl_flwr.transport.relay import Relay

logger = logging.getLogger(__name__)

MAY_DIFFER = ("sample.min-replies", *INCIDENTAL)
"""Settings that a resumed run may change, besides ``num-rounds``."""

RESUMED: Mapping[str, Any] = {
    "may_differ": ("num-rounds", *MAY_DIFFER),
    # Settings that a stored run lacks, because its version did not have them, get their defaults.
    "complete": lambda old: to_flat(from_stored(old)),
}
"""Arguments of ``RunFolder.check`` and ``RunFolder.start``: how to compare settings with those of a stored run."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the strategy that the run config describes."""
    workload = load_workload(context.run_config)
    set_log_format(workload.settings.run.log)
    ours = logging.getLogger("heterofl_flwr")
    if not ours.handlers:  # show this package's log lines together with Flower's
        ours.handlers = list(logging.getLogger("flwr").handlers)
        ours.setLevel(logging.INFO)
        ours.propagate = False
    run(grid, workload)


def run(grid: Grid, workload: Workload, extra_callbacks: Sequence[RoundCallback] = ()) -> FederationStrategy:
    """Run the strategy that the settings describe, and return it.

    If ``run.dir`` is empty, a run on Flower's own grid (``flwr run``) writes a new folder below ``runs``, if possible,
    and a run on a grid of this package writes no folder.
    """
    give_back_freed_memory()
    folder = _choose_folder(grid, workload.settings)
    with nullcontext() if folder is None else folder.lock():
        return _run(grid, workload, folder, extra_callbacks)


def _choose_folder(grid: Grid, settings: Settings) -> RunFolder | None:
    if settings.run.dir:
        return RunFolder(settings.run.dir)
    if isinstance(grid, QueuedGrid | Relay):
        return None
    folder = RunFolder(new_path(short_name(settings.data.name)).resolve())
    try:
        _load_report()
        folder.path.mkdir(parents=True)
    except (OSError, MissingExtraError) as error:
        logger.warning(
            "no folder is written, so results are in this log alone, and the run cannot be resumed: %s. Name a folder "
            "in run.dir",
            error,
        )
        return None
    return folder


def _load_report() -> None:
    """Import the module for the report; a missing package then raises an error before the run."""
    with extra("report"):
        import_module("heterofl_flwr.report.page")


def _run(
    grid: Grid, workload: Workload, folder: RunFolder | None, extra_callbacks: Sequence[RoundCallback]
) -> FederationStrategy:
    settings = workload.settings
    start = find_start(folder, settings)
    if start.finished:
        logger.info(start.finished)
        return make_strategy(workload, extra_callbacks)
    # On this package's grids the number of clients is known now. `heterofl run` wraps its grid in a relay.
    clients = len(list(grid.get_node_ids())) if isinstance(grid, QueuedGrid | Relay) else None
    # FedH2L takes them in two exchanges, so their number says nothing of the speed of one.
    steps = workload.steps_each(clients) if clients and settings.server.strategy != "fedh2l" else None
    as_json = settings.run.log == "json" and clients is None  # each line of such a log must be JSON
    console = Console(steps=steps, logger=logger if as_json else None)
    callbacks = [*build_callbacks(workload, folder), *extra_callbacks]
    strategy = make_strategy(workload, [console, *callbacks])
    # Windowed must be inside of SimulatedDevices.
    grid = Windowed(grid, settings.engine.window) if settings.engine.window else grid
    devices = build_devices(workload)
    if folder is not None:  # write only after everything has been checked
        _load_report()
        _start_folder(folder, workload, start, strategy, clients)
    if settings.privacy.noise:
        text = _forecast_epsilon(strategy, settings, start, simulated=clients is not None)
        (logger.info if as_json else print)(text)
    # With personal models there is no global model that the server could evaluate.
    evaluates = settings.evaluate.central and not workload.personal
    with console.by_time():
        strategy.start(
            grid if devices is None else SimulatedDevices(grid, devices),
            num_rounds=settings.num_rounds,
            timeout=settings.engine.timeout,
            evaluate_fn=partial(evaluate_global, strategy, workload, folder) if evaluates else None,
            resume=start.state,
        )
    if folder is not None:
        if number := strategy.federation.nodes.dealt():  # 0 if a resumed run had no round left
            folder.note(clients=number)
        logger.info("Report: %s", write_report(folder).resolve())
        if clients is None and not as_json:  # 'heterofl run' prints the tables itself
            show_results(folder.path)
    return strategy


def make_strategy(workload: Workload, callbacks: Sequence[RoundCallback]) -> FederationStrategy:
    """Return the ``HeteroFL`` or ``FedH2L`` that the settings describe."""
    settings = workload.settings
    train, server, sample = settings.train, settings.server, settings.sample
    options: dict[str, Any] = {
        "fraction_train": sample.fraction_train,
        "min_available_nodes": sample.min_available_nodes,
        "seed": settings.seed,
        "sampling": sample,
        "training": pick(Training, {**values(train), "proximal_mu": train.proximal}),
        "limits": server,
        "evaluation": settings.evaluate,
        "callbacks": callbacks,
    }
    if server.strategy == "fedh2l":
        if workload.dataset.train.reading is not None:
            raise ConfigError(
                f"server.strategy=fedh2l exchanges what models say of the classes of examples, and the data set "
                f"{settings.data.name} is text: choose one with classes"
            )
        data, flat = (settings.data.name, settings.data.split), to_flat(settings)
        usual = {**preset(*data, settings.model.name), "model.name": preset(*data)["model.name"]}
        # Not in settings/contradictions.py, because finished runs with such settings must stay readable.
        unread = [f"{key}={flat[key]}" for key in ("model.name", "model.hidden") if flat[key] != usual[key]]
        if settings.distill.models and unread:
            raise ConfigError(
                f"{', '.join(unread)}: with distill.models={flat['distill.models']} clients have these models at their "
                f"default widths; expected model.name=auto and model.hidden=auto, or distill.models=''"
            )
        return FedH2L(workload.dataset.classes, settings.mix, distill=settings.distill, **options)
    return HeteroFL(
        workload.build,
        settings.mix,
        slicing=pick(Slicing, {**values(server), "assignment": settings.assignment}),
        averaging=Averaging(
            weights=server.weights,
            labels=train.labels if workload.counts_labels else "sent",
            fidelity=Fidelity.of(settings.fidelity),
            robust=server.build_robust_mean(),
            aggregator=AGGREGATORS[server.aggregator],
        ),
        stages=parse_stages(server.stages),
        privacy=settings.privacy,
        asynchronous=settings.asynchronous,
        **options,
    )


def build_devices(workload: Workload) -> Devices | None:
    """Return the devices of ``devices.profile``; None if it is empty."""
    settings = workload.settings
    name = settings.devices.profile
    if not name:
        return None
    profiles: Profiles = EDGE if name == "edge" else load_function(name, "devices.profile")()
    examples, train = workload.dataset.train, settings.train
    pieces = 1.0 if examples.reading is None else examples.inputs.shape[1] / examples.reading.length
    cost = TrainingCost(
        workload.build,
        workload.example(),
        epochs=train.epochs,
        inputs=pieces,
        widths=train.distill,
        rates=workload.mix.rates,
    )
    return Devices(profiles, cost, deadline=settings.devices.deadline or math.inf)


@dataclass(frozen=True, slots=True)
class Start:
    """Starting point of a run; by default, a new run."""

    state: RunState | None = None  # checkpoint from which the run continues
    finished: str = ""  # message that the run is already finished; '' if it is not


def find_start(folder: RunFolder | None, settings: Settings) -> Start:
    """Return the starting point of a run in ``folder``.

    Raise ``ConfigError`` if a run with ``settings`` cannot start there or, with ``run.resume``, cannot continue there.
    """
    if folder is None:
        return Start()
    resume, rounds = settings.run.resume, settings.num_rounds
    folder.check(to_flat(settings), resume=resume, **RESUMED)
    if not resume or not folder.has_checkpoint:
        if resume and (records := folder.history()):
            logger.warning(
                "%s has no checkpoint: the run starts anew, without its %s", folder.path, counted(len(records), "round")
            )
        return Start()
    checkpoint, about = folder.load_checkpoint(), folder.about()
    done = checkpoint.server_round
    # A run that died after its final round is not ``finished``: it must still write its models. A callback may have
    # ended a run before ``num_rounds``. If the newest checkpoint is damaged, ``recorded`` is above ``done``.
    recorded = max((record.server_round for record in folder.history()), default=done)
    if about.get("finished") and recorded == done and rounds in (done, about.get("num_rounds")):
        planned = about.get("num_rounds", done)  # above ``done`` if a callback ended the run
        rest = f"finished: {counted(done, 'round')}; to go on, set num-rounds above {planned}"
        return Start(finished=f"the run in {folder.path} is {rest}")
    if done > rounds:
        raise ConfigError(
            f"the run in {folder.path} has done {counted(done, 'round')}, and num-rounds is {rounds}: ask for {done} "
            f"or more"
        )
    if settings.train.exits != "last" and settings.distill.ramp and rounds != about.get("num_rounds"):
        raise ConfigError(
            f"num-rounds: found {rounds}, but the run in {folder.path} was started with {about.get('num_rounds')}, and "
            f"its losses depend on this number (distill.ramp); expected {about.get('num_rounds')}"
        )
    return Start(checkpoint)


def _forecast_epsilon(strategy: FederationStrategy, settings: Settings, start: Start, *, simulated: bool) -> str:
    rounds = range(start.state.server_round + 1 if start.state else 1, settings.num_rounds + 1)
    final = strategy.spent.epsilon(count_releases(strategy.federation, rounds, simulated=simulated))
    return f"epsilon is at most {final:.4g} at delta {settings.privacy.delta:g} after round {settings.num_rounds}"


def _start_folder(
    folder: RunFolder, workload: Workload, start: Start, strategy: FederationStrategy, clients: int | None
) -> None:
    settings = workload.settings
    about = {
        "title": run_title(settings),
        "device": device_name(workload.device),
        **({"clients": clients} if clients else {}),  # no setting has the number of clients
    }
    folder.start(to_flat(settings), resume=settings.run.resume, about=about, **RESUMED)
    strategy.spent.keep_in(folder)
    if clients and workload.dataset.train.reading is None:
        write_counts(folder, names=workload.dataset.class_names, clients=workload.count_classes(clients))
