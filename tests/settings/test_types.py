"""What a value can be, type by type, shown on settings that have it."""

import math
from typing import get_args

import pytest

from heterofl_flwr.core.levels import Mix
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings.flat import accepts, from_flat, to_flat
from heterofl_flwr.settings.groups import EngineSettings
from heterofl_flwr.settings.types import AUTO
from heterofl_flwr.training import ENGINES

GOOD = [
    ("num-rounds", 1, 1),
    ("sample.min-nodes", 3, 3),
    ("evaluate.levels", "last", "last"),
    ("data.split", "natural-writer_id", "natural-writer_id"),
    ("data.root", "/a b/c", "/a b/c"),
    ("model.hidden", " 64 , 128 ", (64, 128)),
    ("model.hidden", 100, (100,)),
    ("train.milestones", "1,2,30", (1, 2, 30)),
    ("run.callbacks", "tensorboard,my.module:Thing", ("tensorboard", "my.module:Thing")),
    ("server.shared", "hidden.*, [ab]?.bias", ("hidden.*", "[ab]?.bias")),
    ("mix", "a1-e9", Mix((1.0, 0.0625), (1, 9))),
    ("sample.min-replies", 0.5, 0.5),
    ("server.largest-level", 0.3, 0.3),
    ("server.levels", "", {}),
    ("server.levels", " phone = c,camera=0.3", {"phone": "c", "camera": "0.3"}),
]

BAD = [
    ("num-rounds", [0, -1, 1.0, True, "1"]),
    ("train.clip", ["1", True, math.nan, math.inf, 10**400, -1e-9]),
    ("seed", [-1, None, [1, 2], {"a": 1}, b"x"]),
    ("sample.fraction", [0, 1.0001]),
    ("train.momentum", [1.0, -0.1]),
    ("server.max-examples", [0, 10**9 + 1]),
    ("privacy.delta", [0, 1]),
    ("evaluate.central", [1, 0, "true"]),
    ("evaluate.levels", [1, "first"]),
    ("assignment", ["b", "", "fix\n", 1, "Fix"]),
    ("data.split", ["", "non-iid-0", "dirichlet-0", "IID", 2]),
    ("data.root", [3]),
    ("model.hidden", ["64,", "0", "-1", "1.5", "a", 0, -3, 1.5, True]),
    ("train.milestones", ["2,1", "3,3"]),
    ("run.callbacks", ["a,a", "a,,b", 3]),
    ("server.shared", ["a,,b", 3]),
    ("sample.min-replies", [0, 1.0, 1.5, "half", True]),
    ("mix", ["a1-q1", "", 1]),
    ("server.largest-level", ["", "q", 0, 2.0, True]),
    ("server.levels", ["phone", "=c", "phone=", "phone=q", "phone=c,", "phone=c,phone=a", 3]),
]


@pytest.mark.parametrize(("key", "flat", "value"), GOOD)
def test_a_good_value_is_read_again_as_it_is_written(key, flat, value):
    settings = from_flat({key: flat})
    group, _, name = key.replace("-", "_").rpartition(".")
    name = {"min_nodes": "min_available_nodes"}.get(name, name)
    read = getattr(getattr(settings, group) if group else settings, name)
    assert (read, type(read)) == (value, type(value))
    written = to_flat(settings)
    assert from_flat(written) == settings
    assert isinstance(written[key], bool | int | float | str)


@pytest.mark.parametrize(("key", "values"), BAD)
def test_a_bad_value_is_rejected_by_its_key(key, values):
    for value in values:
        assert not accepts(key, value)
        with pytest.raises(ConfigError, match=f"^{key}: "):
            from_flat({key: value})


def test_each_engine_can_be_named():
    assert get_args(EngineSettings.model_fields["name"].annotation) == (AUTO, *ENGINES)
