"""The authors' code, where there is a checkout of it, with the settings of small models."""

import copy
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parity.theirs import CLASSES, HEADS, WORDS, Authors, import_theirs


@pytest.fixture(scope="session")
def _imported() -> Authors:
    if "HETEROFL_AUTHORS" not in os.environ:
        pytest.skip("needs the HeteroFL authors' code: set HETEROFL_AUTHORS to a checkout of their repository")
    return import_theirs(Path(os.environ["HETEROFL_AUTHORS"]).resolve() / "src")


@pytest.fixture
def authors(_imported: Authors) -> Iterator[Authors]:
    """Return the authors' code with the settings of small models; what a test changes is undone."""
    before = copy.deepcopy(_imported.cfg)
    text = {"embedding_size": 128, "num_heads": HEADS, "hidden_size": 96, "num_layers": 2, "dropout": 0.0}
    _imported.cfg.update(device="cpu", scale=True, mask=True, norm="bn", data_shape=[3, 16, 16], classes_size=CLASSES)
    _imported.cfg.update(num_tokens=WORDS, bptt=12, mask_rate=0.0, transformer=text)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)
        yield _imported
    _imported.cfg.clear()
    _imported.cfg.update(before)
