"""``IssuedModels``: the models that a task has returned, to check the trained model that a user passes back."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from heterofl_flwr.client.outgoing import warn_once
from heterofl_flwr.common.errors import ConfigError, listed
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.nn.buffers import copy_unsent, count_batches, find_changed, find_frozen_norms
from heterofl_flwr.nn.build import new_model
from heterofl_flwr.nn.execution import device_of
from heterofl_flwr.nn.inner_widths import InnerWidth
from heterofl_flwr.nn.models import Build


class _Issued(NamedTuple):
    """State of a model when the task returned it, and the smaller models inside it, which are built on first use."""

    unsent: Mapping[str, Tensor]  # tensors that clients do not send
    batches: Mapping[str, int]  # numbers of batches that batch norms have seen
    inner: list[InnerWidth]


class IssuedModels:
    """Registry of the models that a task has returned."""

    def __init__(self) -> None:
        self._issued = WeakKeyDictionary[nn.Module, _Issued]()
        self._names: tuple[str, ...] = ()

    def add(self, model: nn.Module) -> None:
        """Register a new model and the names of its exchanged parameters. Call this before a user can freeze them."""
        self._names = tuple(exchanged_parameters(model))
        self._issued[model] = _Issued(copy_unsent(model), count_batches(model), [])

    def check(self, model: object, call: str) -> nn.Module:
        """Return a model that the task has returned; raise ``ConfigError`` for any other object."""
        if not isinstance(model, nn.Module) or model not in self._issued:
            raise ConfigError(
                f"this {type(model).__name__} is not the model of this task: give {call} what task.model() returned, "
                f"not a copy, a new model, another task's model, or a model wrapped by DataParallel, torch.compile or "
                f"Opacus"
            )
        return model

    def parameters_of(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return, by name, the parameters of a trained model whose names ``add`` registered.

        Some of them may be personal: the client does not send them. Raise ``ConfigError`` if the model has lost one of
        these parameters. Warn of tensors that training has changed and that are not sent, and of frozen batch norms.
        """
        parameters = dict(model.named_parameters())
        if missing := set(self._names) - parameters.keys():
            raise ConfigError(
                f"the model has lost parameters since task.model() returned it ({listed(missing)}): wrap or "
                f"change a model in build, not afterwards"
            )
        trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        if unsent := [name for name in trained if name not in self._names]:
            warn_once(
                f"parameters are trained here and not sent, because build returns no such parameters, or returns them "
                f"with requires_grad=False: {listed(unsent)}"
            )
        if changed := find_changed(model, self._issued[model].unsent):
            warn_once(
                f"training changes {listed(changed)}, which clients do not send, so each task begins with the values "
                f"that build gives them: make a buffer a torch.nn.Parameter; if it is a frozen parameter "
                f"(requires_grad=False), let build return heterofl_flwr.core.exchange_frozen(model)"
            )
        if frozen := find_frozen_norms(model, self._issued[model].batches):
            warn_once(
                f"training runs batch norm ({listed(frozen)}) in evaluation mode, by the statistics that build gives "
                f"it, but evaluations use the statistics of the clients' data: call model.train() before training, or "
                f"let build use torchvision.ops.FrozenBatchNorm2d, which evaluations do not change"
            )
        return {name: parameters[name] for name in self._names}

    def inner_widths(self, model: nn.Module, build: Build, rates: Iterable[float]) -> Sequence[InnerWidth]:
        """Return the smaller models inside ``model``, one for each of ``rates``, the smallest first."""
        inner = self._issued[model].inner
        if not inner:
            device = device_of(model)
            inner += [InnerWidth(model, new_model(build, rate).to(device)) for rate in sorted(rates)]
        return inner
