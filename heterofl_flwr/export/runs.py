"""What every format gives: a written file, opened again, as a function from inputs to outputs."""

from collections.abc import Callable

from torch import Tensor

from heterofl_flwr.export.inputs import Inputs

Run = Callable[[Inputs], list[Tensor]]
