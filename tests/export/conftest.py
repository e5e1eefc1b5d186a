"""Exports that are quick enough to have many."""

from collections.abc import Iterator
from functools import cache

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_table_of_functions() -> Iterator[None]:
    """Let torch read its table of ONNX functions once: it does so for each export, for half of a small one's time.

    The table is inside torch; where another version has it elsewhere, tests are slower.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(cache(read)))
        yield
