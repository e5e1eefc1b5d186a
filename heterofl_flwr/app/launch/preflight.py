"""What is checked before a run starts."""

from heterofl_flwr.app.callbacks import check_names
from heterofl_flwr.app.server_app import build_devices, make_strategy
from heterofl_flwr.app.task import Task
from heterofl_flwr.errors import ConfigError, HeteroFLError, first_line
from heterofl_flwr.federation.summary import find_equal_levels
from heterofl_flwr.nn.models import MODELS, Build
from heterofl_flwr.nn.profile import build_and_profile


def check_task(task: Task, clients: int) -> None:
    """Raise an error if there is no such data set, if it is too small for the clients, or if a model does not fit it.

    The data set is loaded for it.
    """
    try:
        task.partitions(clients)
        warnings = find_equal_levels(make_strategy(task, ()).federation)
        build_devices(task)
        if task.settings.server.strategy == "fedh2l":
            _ = task.seeds
        _ = task.device, task.metric  # which loads the user's function
        check_names(task.settings.run.callbacks)
    except HeteroFLError:
        raise
    except Exception:  # a user's own function raises what it likes; the run itself will say so, with its trace
        return
    for name, build in task.builds.items():
        if name in MODELS:  # a user's own may do what no test can foresee
            _check_fit(task, name, build)
    _say_size(task, clients)
    for warning in warnings:
        print(warning)


def _say_size(task: Task, clients: int) -> None:
    """Print how many clients a round asks, and how far each trains."""
    asked = task.settings.asynchronous.size or task.settings.sample.number(clients, "train")
    steps = task.steps_each(clients)
    print(f"{asked} of {clients} clients train in each round{f', about {steps:.0f} steps each' if steps else ''}")
    if task.settings.assignment == "fix" and clients < len(task.mix.parts):
        print(f"{clients} clients share the {len(task.mix.parts)} parts of the mix {task.mix}, so some level has none")


def _check_fit(task: Task, name: str, build: Build) -> None:
    example = task.example()
    try:
        build_and_profile(build, task.mix.global_rate, example)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the model {name} cannot read the data set {task.settings.data.name}, whose inputs are "
            f"{example.dtype} of shape {tuple(example.shape[1:])} ({first_line(error)}): name another model "
            f"(model.name), or auto"
        ) from error
