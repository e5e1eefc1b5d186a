"""Export of a model in several formats."""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils._pytree import tree_leaves, tree_map

from heterofl_flwr.common.errors import (
    ConfigError,
    DataError,
    HeteroFLError,
    check_list,
    counted,
    first_line,
    listed,
    short,
)
from heterofl_flwr.common.files import writing
from heterofl_flwr.export.formats import FORMATS, Axes, Inputs, Run, Traced, formats_named
from heterofl_flwr.nn.execution import call, named_tensors
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import is_measured, with_static_norm

BATCH: Axes = {0: "batch"}

TOLERANCE = 1e-4
"""Largest allowed error in an output tensor, as a fraction of the largest absolute value in the expected tensor.

float32 has about seven digits. If additions are reordered, about five digits of a deep model's outputs stay the same.
The error is relative to the largest value, because rounding errors depend on the terms of a sum, even if the sum is
small. A model with tensors of a less precise dtype has a larger tolerance (``ROUNDINGS``).
"""

ROUNDINGS = 4
"""Lower bound on the tolerance, as a multiple of the machine epsilon of the model's least precise dtype.

The bound is 0.004 with float16, and 0.03 with bfloat16.
"""


def export_model(
    model: nn.Module,
    inputs: object,
    folder: str | Path,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    dynamic: Axes = BATCH,
    outputs: Sequence[str] = (),
    moments: Moments | None = None,
) -> dict[str, int]:
    """Export a model to files in a folder, and return the size of each format in bytes.

    Each file is opened again and run on ``inputs``. In each output tensor, an element may differ from the model's by at
    most 1e-4 of the largest absolute value in the model's tensor. This fraction is 0.004 if the model has
    tensors in float16, and 0.03 if it has tensors in bfloat16. After an error, the folder is unchanged.

    Parameters
    ----------
    model : nn.Module
        Any model. It is copied, not changed.
    inputs : object
        Examples for the comparison, such as part of the test data: a tensor, a tuple of arguments or a mapping of
        keyword arguments. The files do not contain them.
    folder : str | Path
        The target folder. Files of an earlier export are replaced or, if their format is not in ``formats``, deleted.
    formats : Sequence[str]
        Names in ``FORMATS``; ``onnx`` needs ``heterofl-flwr[export]``.
    dynamic : Mapping[int, str]
        Axes of the inputs that may have any length, with their names; for a language model, ``{0: "batch", 1:
        "sequence"}``.
    outputs : Sequence[str]
        Names of all outputs in ONNX. Default: the keys of a dict of tensors that the model returns, or else ``logits``
        for the first output.
    moments : Moments | None
        Static batch norm moments, such as ``strategy.moments[rate]``; needed if batch norm has no statistics.

    Raises
    ------
    HeteroFLError
        If the model cannot be exported, or the outputs of a file differ from the model's.
    """
    chosen = formats_named(formats)
    examples = read_inputs(inputs)
    _check_axes(dynamic, examples)
    copied = copy.deepcopy(model if moments is None else with_static_norm(model, moments))
    copied.cpu().eval().requires_grad_(False)
    _check_statistics(copied)
    returned = _run(type(model).__name__, partial(call, copied), examples, "expected what it is trained on")
    expected = _read_outputs(returned)
    names = _name_outputs(returned, outputs, len(expected))
    if not all(bool(output.isfinite().all()) for output in expected):
        raise HeteroFLError(
            "the model's own outputs hold NaN or infinities: its training has diverged, or the inputs are not what it "
            "was trained on"
        )
    traced = Traced(copied, trace(copied, examples, dynamic), examples, dynamic, names)
    dtypes = {tensor.dtype for tensor in (*named_tensors(copied).values(), *expected) if tensor.is_floating_point()}
    tolerance = max([TOLERANCE, *(ROUNDINGS * torch.finfo(dtype).eps for dtype in dtypes)])
    target = Path(folder)
    sizes: dict[str, int] = {}
    # A folder that exists may be on another file system than its parent, so temporary files are written inside it.
    place = target if target.is_dir() else target.parent
    with writing(target), TemporaryDirectory(dir=place, prefix=f".{target.name}.") as temporary:
        for name, kind in chosen.items():
            path = Path(temporary, kind.file)
            try:
                kind.write(traced, path)
                opened = kind.open(traced, path)
            except (HeteroFLError, OSError):
                raise
            except Exception as error:  # torch, the ONNX exporter and its runtime raise various errors
                raise HeteroFLError(
                    f"{type(model).__name__} cannot be written as {name} and opened again: {_describe(error)}. Other "
                    f"formats: {', '.join(text for text in FORMATS if text != name)} (formats=[...])"
                ) from error
            compare(name, opened, examples, expected, tolerance)
            sizes[name] = sum(part.stat().st_size for part in path.parent.glob(f"{kind.file}*"))
        _replace(target, Path(temporary))
    return sizes


def _run(name: str, run: Run, inputs: Inputs, remedy: str) -> object:
    try:
        with torch.no_grad():
            return run(tree_map(torch.clone, inputs))  # a model may change its inputs in place
    except Exception as error:  # raised by the model's code, a guard of torch or the runtime
        raise HeteroFLError(f"{name} does not run on the inputs: {first_line(error)}; {remedy}") from error


def _replace(target: Path, new: Path) -> None:
    target.mkdir(exist_ok=True)
    written = [path.replace(target / path.name) for path in new.iterdir()]
    for path in (target / f"{kind.file}{end}" for kind in FORMATS.values() for end in ("", ".data")):
        if path not in written:
            path.unlink(missing_ok=True)


def read_inputs(inputs: object) -> Inputs:
    """Convert a tensor, or a tuple or mapping of tensors, to a tuple or dictionary of tensors on the CPU.

    Raise ``DataError`` for any other inputs, and for tensors that are empty or have no axes.
    """
    arguments = dict(inputs) if isinstance(inputs, Mapping) else (inputs,) if isinstance(inputs, Tensor) else inputs
    leaves = (
        list(arguments.values()) if isinstance(arguments, dict) else arguments if isinstance(arguments, tuple) else ()
    )
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() and leaf.numel() for leaf in leaves):
        raise DataError(
            f"the inputs are {type(inputs).__name__}; expected what the model is called with: a tensor of some "
            f"examples, a tuple of such tensors, or a mapping of named ones"
        )
    on_cpu: Inputs = tree_map(lambda leaf: leaf.detach().cpu(), arguments)
    return on_cpu


def _check_axes(dynamic: Axes, inputs: Inputs) -> None:
    largest = max(leaf.dim() for leaf in tree_leaves(inputs))
    if unknown := [axis for axis in dynamic if not 0 <= axis < largest]:
        raise ConfigError(
            f"dynamic has the axis {', '.join(map(str, unknown))}, which no input has: expected 0 to {largest - 1}"
        )


def _check_statistics(model: nn.Module) -> None:
    # An instance norm that tracks no statistics computes the same in training and in evaluation.
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _NormBase)]
    needing = [(name, layer) for name, layer in layers if isinstance(layer, _BatchNorm) or layer.track_running_stats]
    if without := [name for name, layer in needing if not is_measured(layer)]:
        raise ConfigError(
            f"norms have no statistics in {counted(len(without), 'layer')} ({listed(without)}), so the "
            f"model's outputs would be wrong or depend on the batch: pass moments=, measured by "
            f"heterofl_flwr.nn.collect_moments or by the run (strategy.moments[rate])"
        )


def _describe(error: Exception) -> str:
    # The whole error, because its informative line is not always the first.
    return short(" ".join(f"{type(error).__name__}: {error}".split()), 600)


_REMEDY = (
    "What a model computes may not depend on its inputs' values; it takes lengths from their shapes, as x.shape[0] and "
    "not len(x) (dynamic={} fixes all lengths to those of the inputs given), and returns tensors alone (for a language "
    "model of transformers, set config.use_cache = False)"
)


def trace(model: nn.Module, inputs: Inputs, axes: Axes) -> ExportedProgram:
    """Return the model's exported program. It contains neither values of ``inputs`` nor paths of this machine.

    Raises
    ------
    HeteroFLError
        If ``torch.export`` cannot trace the model, or cannot make the axes in ``axes`` dynamic.
    """

    def zeros(leaf: Tensor) -> Tensor:
        # Zeros, because a program stores its example inputs, and these must not contain data. Two or more, because
        # torch.export fixes lengths of 1.
        lengths = [
            (max(2, length) if axis else 2) if axis in axes else length for axis, length in enumerate(leaf.shape)
        ]
        return leaf.new_zeros(lengths)

    example: Inputs = tree_map(zeros, inputs)
    args, named = ((), example) if isinstance(example, dict) else (example, {})
    dynamic = ShapesCollection()  # by tensor, because torch wants the shapes of *args and **kwargs in another structure
    for leaf in tree_leaves(example):
        dynamic[leaf] = {axis: Dim.DYNAMIC for axis in axes if axis < leaf.dim()}
    try:
        with model.register_forward_hook(lambda layer, arguments, output: _plain(output)):
            program = torch.export.export(model, args, named, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch and the model's code raise various errors
        raise HeteroFLError(
            f"torch.export cannot make a program of {type(model).__name__}: {_describe(error)}. {_REMEDY}"
        ) from error
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def _plain(output: object) -> object:
    """Return a mapping as a ``dict``, and a named tuple as a ``tuple``.

    A program that returns an object of transformers, for example, cannot be loaded without transformers.
    """
    return dict(output) if isinstance(output, Mapping) else tuple(output) if isinstance(output, tuple) else output


def compare(name: str, run: Run, inputs: Inputs, expected: Sequence[Tensor], tolerance: float = TOLERANCE) -> None:
    """Run an exported file; raise ``HeteroFLError`` if its outputs differ from ``expected`` too much.

    Shapes and dtypes must be equal. ``tolerance`` is the largest allowed error in an output tensor, as a fraction of
    the largest absolute value in the expected tensor.
    """
    remedy = "nothing was written; if the model's code asks for a certain length, leave that axis out of dynamic"
    outputs = _read_outputs(_run(f"the {name} file", run, inputs, remedy))
    kinds = [
        ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors) for tensors in (outputs, expected)
    ]
    if kinds[0] != kinds[1]:
        raise HeteroFLError(f"the {name} file puts out {kinds[0]}; the model puts out {kinds[1]}. Nothing was written")
    for output, reference in zip(outputs, expected, strict=True):
        largest = reference.double().abs().max().item() if reference.numel() else 0.0
        if not torch.allclose(output.double(), reference.double(), rtol=0, atol=tolerance * largest):
            distance = (output.double() - reference.double()).abs().max().item()
            raise HeteroFLError(
                f"the {name} file says something else than the model: its outputs are up to {distance:.3g} off, "
                f"expected up to {tolerance:g} times the largest output, {largest:.3g}. Nothing was written. "
                f"Expected a model whose outputs are the same each time: with F.dropout, give training=self.training. "
                f"If they are, please report the model and the versions of torch and onnx"
            )


def _name_outputs(returned: object, names: Sequence[str], number: int) -> Sequence[str]:
    check_list("outputs", names, "logits")
    if not isinstance(returned, Mapping) or not all(isinstance(value, Tensor) for value in returned.values()):
        if names and len(names) != number:
            raise ConfigError(f"outputs is {', '.join(names)}; expected {counted(number, 'name')}, as many as outputs")
        return names or ("logits",)
    keys = [str(key) for key in tree_leaves({key: key for key in returned})]
    if names and sorted(names) != sorted(keys):
        raise ConfigError(
            f"outputs is {', '.join(names)}, and the model returns a dict of {', '.join(keys)}: leave it out"
        )
    return keys


def _read_outputs(output: object) -> list[Tensor]:
    tensors = [leaf.clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if not tensors:
        raise DataError(f"the model returned {type(output).__name__}, in which no tensor was found")
    return tensors
