"""The formats, and what each needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.export.onnx import open_onnx, write_onnx
from heterofl_flwr.export.program import open_program, write_program
from heterofl_flwr.export.runs import Run
from heterofl_flwr.export.state import open_state, write_state
from heterofl_flwr.export.tracing import Traced


@dataclass(frozen=True, slots=True)
class Format:
    """A way of writing a model.

    Attributes
    ----------
    file
        The name of its file.
    write
        Writes it.
    open
        Opens what was written, for the check.
    needs
        Packages beside torch and safetensors.
    """

    file: str
    write: Callable[[Traced, Path], None]
    open: Callable[[Traced, Path], Run]
    needs: tuple[str, ...] = ()


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "safetensors": Format("model.safetensors", write_state, open_state),
        "pt2": Format("model.pt2", write_program, open_program),
        "onnx": Format("model.onnx", write_onnx, open_onnx, ("onnx", "onnxscript", "onnxruntime")),
    }
)
"""By name: a model's tensors for its own code, a program for torch, a program for any runtime."""


def formats_named(names: Sequence[str]) -> dict[str, Format]:
    """Return the formats of these names; refuse unknown ones, and those that lack a package."""
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise ConfigError(f"formats are {', '.join(unknown) or 'none'}; expected some of {', '.join(FORMATS)}")
    chosen = {name: FORMATS[name] for name in FORMATS if name in names}
    for name, one in chosen.items():
        missing = [package for package in one.needs if find_spec(package) is None]
        if missing:
            others = ",".join(other for other, own in FORMATS.items() if not own.needs)
            raise ConfigError(
                f"the format {name} needs {', '.join(missing)}, not installed here: pip install "
                f"'heterofl-flwr[export]', or choose other formats ({others})"
            )
    return chosen
