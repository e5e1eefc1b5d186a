"""The format ``onnx``, for runtimes without torch. What it needs is loaded on demand."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.export.inputs import Inputs
from heterofl_flwr.export.runs import Run
from heterofl_flwr.export.tracing import Traced

SINGLE_FILE = 2**31 - 2**24
"""Bytes of tensors that still fit in one file: protobuf ends at 2 GiB. A larger model has its tensors beside it."""


def write_onnx(traced: Traced, path: Path) -> None:
    """Write the program as ONNX, its inputs, outputs and axes under the names that the manifest gives."""
    import onnx

    exported: Any = torch.onnx.export(
        traced.program,
        (),
        input_names=[port.name for port in traced.inputs],
        output_names=[port.name for port in traced.outputs],
        dynamo=True,
        verbose=False,
    )
    proto = exported.model_proto
    _tidy(proto, traced.symbols)
    size = sum(one.numel() * one.element_size() for one in traced.program.state_dict.values())
    onnx.save(proto, path, save_as_external_data=size > SINGLE_FILE, location=f"{path.name}.data")
    onnx.checker.check_model(path, full_check=True)


def open_onnx(traced: Traced, path: Path) -> Run:
    """Return what runs the file in onnxruntime, on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> list[Tensor]:
        feed = {port.name: one.numpy() for port, one in zip(traced.inputs, inputs.tensors.values(), strict=True)}
        return [torch.from_numpy(one) for one in session.run(None, feed)]

    return run


def _tidy(proto: Any, symbols: dict[str, str]) -> None:
    """Name axes as the manifest does, and remove where the model's code lay."""
    names = {re.compile(rf"\b{symbol}\b"): name for symbol, name in symbols.items()}
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    axes = [axis for value in values for axis in value.type.tensor_type.shape.dim if axis.dim_param]
    for axis, (symbol, name) in product(axes, names.items()):
        axis.dim_param = symbol.sub(name, axis.dim_param)
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.functions):
        del part.metadata_props[:]
        part.doc_string = ""
