"""The models against the authors' own; set HETEROFL_AUTHORS to a checkout of their repository."""

import copy
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.nn.models import build_model
from heterofl_flwr.nn.transformer import TransformerShape

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif("HETEROFL_AUTHORS" not in os.environ, reason="needs HETEROFL_AUTHORS"),
]
SHAPE = {"embedding_size": 32, "num_heads": 4, "hidden_size": 48, "num_layers": 2, "dropout": 0.0}
HIDDEN = (8, 16, 16, 32)


class _Encoder(nn.Module):
    """What torch's TransformerEncoder was to them; today's passes arguments that their layers do not take."""

    def __init__(self, layer, number):
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(number))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def authors(monkeypatch):
    """Return the authors' models and their settings, which they keep in a global dictionary."""
    config = ModuleType("config")
    config.cfg = {
        "device": "cpu",
        "scale": True,
        "norm": "bn",
        "mask": False,
        "data_shape": [3, 16, 16],
        "classes_size": 10,
        "global_model_rate": 1.0,
        "num_tokens": 30,
        "bptt": 6,
        "mask_rate": 0.0,
        "conv": {"hidden_size": list(HIDDEN)},
        "resnet": {"hidden_size": list(HIDDEN)},
        "transformer": SHAPE,
    }
    theirs = ("models", "modules", "fed")
    before = set(sys.modules)
    monkeypatch.setitem(sys.modules, "config", config)
    monkeypatch.syspath_prepend(str(Path(os.environ["HETEROFL_AUTHORS"]) / "src"))
    import models

    monkeypatch.setattr(sys.modules["models.transformer"], "TransformerEncoder", _Encoder)
    yield models, config.cfg
    for name in set(sys.modules) - before:
        if name.split(".")[0] in theirs:
            del sys.modules[name]


CASES = [
    *(("conv", "cnn", norm) for norm in ("bn", "in", "gn", "ln", "none")),
    *(("resnet18", "preresnet18-later", norm) for norm in ("bn", "in", "gn", "ln", "none")),
    ("resnet50", "preresnet50", "bn"),
    ("transformer", "transformer", None),
]


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize(("theirs", "ours", "norm"), CASES)
def test_a_seed_gives_the_same_weights_outputs_and_gradients(authors, theirs, ours, norm, rate):
    models, cfg = authors
    cfg["norm"] = norm
    torch.manual_seed(3)
    their_model = getattr(models, theirs)(model_rate=rate).train()
    torch.manual_seed(3)
    our_model = _ours(ours, norm, rate).train()
    pairs = list(zip(their_model.parameters(), our_model.parameters(), strict=True))
    assert all(torch.equal(one, two) for one, two in pairs)
    x, targets = torch.randn(4, 3, 16, 16), torch.randint(10, (4,))
    if norm is None:
        x = targets = torch.randint(30, (4, 6))
    their_output = their_model({"img": x, "label": targets})
    logits = our_model(x)
    torch.testing.assert_close(logits, their_output["score"], rtol=1e-4, atol=1e-5)
    their_output["loss"].backward()
    F.cross_entropy(logits, targets).backward()
    for one, two in pairs:
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rate", [0.5, 0.25])
@pytest.mark.parametrize(("theirs", "ours"), [("conv", "cnn"), ("resnet18", "preresnet18-later"), ("transformer",) * 2])
def test_slices_are_theirs(authors, theirs, ours, rate):
    models, cfg = authors
    cfg |= {"model_name": theirs, "model_split_mode": "fix"}
    import fed

    norm = None if ours == "transformer" else "bn"
    full, local = _ours(ours, norm, 1.0), _ours(ours, norm, rate)
    their_state = dict(zip(getattr(models, theirs)(1.0).state_dict(), full.state_dict().values(), strict=True))
    kept = fed.Federation(their_state, [rate], None).split_model([0])[0]
    sub = Plan.of(full, local).extract(full.state_dict())
    for (name, value), mine in zip(their_state.items(), sub.values(), strict=True):
        index = torch.meshgrid(*kept[name], indexing="ij") if isinstance(kept[name], tuple) else kept[name]
        assert torch.equal(value[index], mine), name


def _ours(name, norm, rate):
    if norm is None:
        shape = TransformerShape(sequence=6, embedding=32, hidden=48, heads=4, layers=2, dropout=0.0)
        return build_model(name, vocabulary=30, shape=shape)(rate)
    return build_model(name, channels=3, hidden=HIDDEN, norm={"bn": "sbn"}.get(norm, norm))(rate)
