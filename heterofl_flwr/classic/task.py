"""``Task`` for a ``NumPyClient``: the ``Task`` of ``heterofl_flwr.client`` with arrays instead of messages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from flwr.common import Context, NDArrays, Scalar, parameters_to_ndarrays
from torch import nn

from heterofl_flwr import client
from heterofl_flwr.classic.translation import check_scalars, from_scalars, record_parameters, to_message
from heterofl_flwr.client.imports import check_imports
from heterofl_flwr.client.load_model import sent_tensor
from heterofl_flwr.client.node_config import read_capability
from heterofl_flwr.client.outgoing import check_types
from heterofl_flwr.client.queries import measure_moments
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.nn.build import check_build
from heterofl_flwr.nn.measure_moments import Batches
from heterofl_flwr.nn.models import Build
from heterofl_flwr.transport import messages

FitResult = tuple[NDArrays, int, dict[str, Scalar]]
"""Return value of ``NumPyClient.fit``."""


class Task(client.Task):
    """A call of ``NumPyClient.fit`` or ``evaluate``.

    Parameters
    ----------
    parameters, config
        The arguments of ``fit`` or ``evaluate``.
    context, build, seed_torch
        See ``heterofl_flwr.client.Task``.
    """

    def __init__(
        self,
        parameters: NDArrays,
        config: Mapping[str, Scalar],
        context: Context,
        build: Build,
        *,
        seed_torch: bool = False,
    ) -> None:
        check_types(("parameters", parameters, list), ("config", config, Mapping), ("context", context, Context))
        check_build(build)
        record = from_scalars(config)
        super().__init__(to_message(parameters, record, build), context, build, seed_torch=seed_torch)

    @property
    def asks_for_moments(self) -> bool:
        """Whether ``fit`` is asked for batch norm moments. If so, return ``task.moments(batches)`` from ``fit``."""
        return self.instruction.kind == messages.QUERY_MOMENTS

    def moments(self, batches: Callable[[], Batches], *, device: torch.device | str = "cpu") -> FitResult:
        """Measure the batch norm moments of this client's data; return them as a result of ``fit``.

        Parameters
        ----------
        batches : Callable[[], Iterable]
            Function that returns batches of the training inputs. It is called once for each rate.
        device : torch.device | str
            Device of the model; the batches must be on it.
        """
        record = measure_moments(self, batches, device)
        return parameters_to_ndarrays(record_parameters(record)), 0, {}

    def reply(  # type: ignore[override]  # the classic API has no messages
        self,
        model: nn.Module,
        *,
        num_examples: int,
        labels: Iterable[int] | None = None,
        metrics: Mapping[str, Scalar] | None = None,
        capacity: str | float | None = None,
    ) -> FitResult:
        """Return the result of ``fit``. A task can be answered only once.

        The arguments are as in ``client.Task.reply``, but ``labels`` cannot be a mapping (labels of several output
        heads), and no metric can have the name ``labels`` or ``capacity``.
        """
        if isinstance(labels, Mapping):  # the strategy would ignore them and average the rows of all classes
            raise ConfigError("labels is by head, which the classic API does not carry; expected one list of classes")
        metrics = check_scalars("metrics", metrics or {})
        if taken := sorted({messages.LABELS, messages.CAPACITY}.intersection(metrics)):
            raise ConfigError(f"metrics has {taken[0]}, which is an argument of reply; expected another name")
        if not self.instruction.is_training:
            raise ConfigError(
                f"this call is for {self.instruction.kind}, and reply returns a trained model: before training, check "
                f"task.asks_for_moments, and return task.moments(batches); from evaluate, return (loss, number of "
                f"examples, metrics)"
            )
        num_examples = messages.count_examples(num_examples)  # raises before the client's state is saved
        contents = self._contents(model, num_examples, labels, cast("Mapping[str, float]", metrics), capacity)
        config = dict(contents.config)
        if messages.LABELS in config:
            config[messages.LABELS] = ",".join(map(str, cast("Sequence[int]", config[messages.LABELS])))
        arrays = parameters_to_ndarrays(record_parameters(*contents.records.values()))
        return arrays, contents.num_examples, cast("dict[str, Scalar]", {**contents.metrics, **config})


def parameters_of(model: nn.Module) -> NDArrays:
    """Return the exchanged parameters of a model as arrays, in the order that the strategy expects.

    For ``initial_parameters``, convert the arrays with Flower's ``ndarrays_to_parameters``.
    """
    return [sent_tensor(parameter).numpy() for parameter in exchanged_parameters(model).values()]


def properties_of(context: Context, *, moments: bool = False) -> dict[str, Scalar]:
    """Return the dictionary that ``NumPyClient.get_properties`` must return, with the client's rate and partition.

    Set ``moments=True`` if your ``fit`` checks ``task.asks_for_moments``.
    """
    check_imports()
    properties = cast("dict[str, Scalar]", read_capability(context))
    return {**properties, messages.MOMENTS: True} if moments else properties
