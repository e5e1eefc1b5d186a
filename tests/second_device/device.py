"""A second device on a machine without a GPU: it computes on the CPU, and refuses tensors of the CPU as a GPU does."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from heterofl_flwr.app import workload
from heterofl_flwr.nn import measure_moments
from heterofl_flwr.training.engines import cohort, seats

NAME = "second"
aten = torch.ops.aten
_COPIES = {aten.copy_.default, aten._to_copy.default}
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class OnDevice(Tensor):
    """A tensor on the second device. ``inner`` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        places = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        new = Tensor._make_wrapper_subclass(cls, inner.shape, **places, dtype=inner.dtype, device=torch.device(NAME, 0))
        new.inner = inner
        return new

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = OnDevice(copy.deepcopy(self.inner.detach(), memo)).requires_grad_(self.requires_grad)
            memo[id(self)]._is_param = getattr(self, "_is_param", False)
        return memo[id(self)]

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: "OnDevice") -> None:
        self.inner = value.inner
        Tensor.data.__set__(self, value)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> object:
        return self.inner.tolist()


def _compute(function, args, kwargs):
    """Compute on the CPU, or raise an error where a GPU would."""
    values, shape = tree_flatten((args, kwargs))
    tensors = [value for value in values if isinstance(value, Tensor)]
    ours = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, OnDevice)}
    others = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim()]
    if function in _INDEXED:
        is_mixed = ours and not isinstance(args[0], OnDevice)  # a GPU takes the CPU's indices
    else:
        changes_the_cpu = function.__name__.partition(".")[0].endswith("_") and not isinstance(args[0], OnDevice | list)
        is_mixed = ours and (others or changes_the_cpu) and function not in _COPIES
    if is_mixed:
        raise RuntimeError(f"{function}: expected all tensors on one device, found {len(others)} on the CPU")
    device = kwargs.get("device")
    stays = bool(ours) if device is None else device.type == NAME
    if stays and kwargs.get("generator") is not None:
        raise RuntimeError(f"{function}: expected a generator of the second device, found one of the CPU")
    args, kwargs = tree_unflatten(map(_on_the_cpu, values), shape)
    results = function(*args, **kwargs)
    if not stays:
        return results
    # A function that changes a tensor returns the same tensor.
    return tree_map_only(Tensor, lambda result: ours[id(result)] if id(result) in ours else OnDevice(result), results)


def _on_the_cpu(value):
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.inner if isinstance(value, OnDevice) else value


class _NewTensors(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


class _NewTensorsOfLists(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            return function(*args, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        return function(*args, **kwargs)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Within this context, there is a second device, and ``auto`` means it."""
    with pytest.MonkeyPatch.context() as patch, _NewTensorsOfLists(), _NewTensors():
        usual = workload.resolve_device
        patch.setattr(workload, "resolve_device", lambda name: torch.device(NAME, 0) if name == "auto" else usual(name))
        for numbers in (cohort.LEAST, seats.MOST, workload.COHORTS, workload.AT_ONCE):
            patch.setitem(numbers, NAME, numbers["cuda"])
        patch.setattr(measure_moments, "JOINT", (NAME,))
        # Tensors that are computed in Python cannot change in inference mode.
        patch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext())
        yield torch.device(NAME, 0)


_setup_privateuseone_for_python_backend(NAME)
