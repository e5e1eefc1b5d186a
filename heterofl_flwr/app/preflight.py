"""Checks before a run starts."""

from contextlib import suppress

import torch
from torch import Tensor, nn

from heterofl_flwr.app.callbacks import check_names
from heterofl_flwr.app.request import Request
from heterofl_flwr.app.server_app import build_devices, find_start, make_strategy
from heterofl_flwr.app.workload import Workload, load_workload
from heterofl_flwr.client.load_model import for_evaluation
from heterofl_flwr.common.errors import ConfigError, HeteroFLError, counted, first_line
from heterofl_flwr.core.assignment import fixed_rate
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.nn.models import MODELS, Build
from heterofl_flwr.nn.profile import build_and_profile
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.auto_values import with_architecture


def check_run(request: Request) -> str:
    """Raise an error if a run cannot start. Otherwise, print how large its rounds are, and return ''.

    If the run is already finished, print nothing, and return a message that says so.
    """
    workload, folder = load_workload(request.config), RunFolder(request.out)
    start = find_start(folder, workload.settings)
    if not start.finished:
        if size := check_task(workload, request.clients):
            print(size)
        if workload.settings.sample.spare and request.grid == "local" and not workload.settings.devices.profile:
            print(
                "sample.spare: here all clients that are asked answer, so the spare ones count too; let some be late "
                "(devices.profile), or leave it out"
            )
        with folder.lock():
            pass  # raises an error if the folder is not writable or another process runs there
    return start.finished


def check_task(workload: Workload, clients: int) -> str:
    """Load the data set; raise an error if it cannot be split among the clients, or if a model cannot read it.

    Also raise an error if a setting names an unusable device, function or callback.

    Return a line with the number of clients that train in a round, and the approximate number of steps of each. Return
    '' if a user's function raises another error than ``HeteroFLError``: the run will show it with a traceback.
    """
    try:
        workload.partitions(clients)
        architecture = make_strategy(workload, ()).federation.architecture
        for rate in workload.mix.all_rates:
            architecture.plan(rate)
        build_devices(workload)
        if workload.settings.server.strategy == "fedh2l":
            _ = workload.seeds
        _ = workload.device, workload.metric  # loads the user's function
        check_names(workload.settings.run.callbacks)
    except HeteroFLError:
        raise
    except Exception:  # an error of a user's function; the run raises it again, with a traceback
        return ""
    for name, build in workload.builds.items():
        for rate in workload.mix.all_rates if name not in MODELS else (workload.mix.global_rate,):
            _check_fit(workload, name, build, rate)
    return _describe_size(workload, clients)


def _describe_size(workload: Workload, clients: int) -> str:
    settings, mix = workload.settings, workload.mix
    taking_part = sum(fixed_rate(mix, partition, clients) > 0 for partition in range(clients)) if mix.idle else clients
    number = min(settings.asynchronous.size, taking_part) or settings.sample.number(taking_part, "train")
    steps = workload.steps_each(clients)
    each = f", about {counted(round(steps), 'step')} each" if steps else ""
    return f"each round trains {number} of {counted(taking_part, 'client')}{each}"


def _check_fit(workload: Workload, name: str, build: Build, rate: float) -> None:
    try:
        _try_model(workload, name, build, rate)
    except HeteroFLError:
        raise
    except Exception as error:  # a user's function may raise any error
        example = workload.example()
        if name not in MODELS:
            raise ConfigError(
                f"the model {name} fails at rate {rate:g} on an input of {workload.settings.data.name}, "
                f"{example.dtype} of shape {tuple(example.shape[1:])}: {first_line(error)}"
            ) from error
        raise ConfigError(
            f"the model {name} cannot read the data set {workload.settings.data.name}, whose inputs are "
            f"{example.dtype} of shape {tuple(example.shape[1:])} ({first_line(error)}): expected model.name to "
            f"be {' or '.join(filter(None, [', '.join(_find_models(workload, rate)), 'a function of yours']))} "
            f"(module:function)"
        ) from error


def _try_model(workload: Workload, name: str, build: Build, rate: float) -> None:
    model, _ = build_and_profile(build, rate, workload.example())
    if workload.dataset.train.reading is None:
        _check_output(workload, name, model)


def _find_models(workload: Workload, rate: float) -> list[str]:
    """Return the names of this package's models that can read the data set."""
    names = []
    for name in MODELS:
        with suppress(Exception):  # of any kind, as in _check_fit
            _try_model(workload, name, Workload(with_architecture(workload.settings, name)).build, rate)
            names.append(name)
    return names


def _check_output(workload: Workload, name: str, model: nn.Module) -> None:
    inputs, classes = workload.dataset.train.inputs[:2].clone(), workload.dataset.classes
    with torch.no_grad(), kept_random_state():
        output = for_evaluation(model, None)(inputs)
    if isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] >= classes:
        return
    returned = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise ConfigError(
        f"the model {name} returns {returned} for {len(inputs)} examples of {workload.settings.data.name}; expected a "
        f"tensor ({len(inputs)}, {classes}), a score for each class"
    )
