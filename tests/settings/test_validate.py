"""The one parser of run configs, and what is printed of the settings."""

import json
import math
import tomllib
from typing import get_args

import pytest
from hypothesis import given, strategies as st

import heterofl_flwr
from heterofl_flwr import Adagrad, Mix, Momentum, Yogi
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import to_json
from heterofl_flwr.settings.auto_values import OTHER
from heterofl_flwr.settings.definitions import EngineSettings
from heterofl_flwr.settings.renamed import from_stored
from heterofl_flwr.settings.server_stages import STAGES, parse_stages
from heterofl_flwr.settings.validate import (
    DEFAULTS,
    SPECS,
    accepts,
    flatten,
    from_flat,
    read_config,
    to_flat,
    unused_settings,
)
from heterofl_flwr.settings.value_types import AUTO
from heterofl_flwr.settings.without_torch import to_toml
from heterofl_flwr.stages.server_stage import ServerStage
from heterofl_flwr.training import ENGINES
from tests.flower_internals import flatten_dict

EXAMPLES = st.fixed_dictionaries(
    {},
    optional={
        "mix": st.sampled_from(["a1-e1", "b1", "1.0x1-0.3x9", "a-b-c"]),
        "num-rounds": st.one_of(st.just(AUTO), st.integers(1, 500)),
        "fidelity": st.sampled_from(["paper", "fixed"]),
        "data.name": st.sampled_from(["digits", "mnist", "ylecun/mnist", "cifar10", "wikitext2", "/a/folder"]),
        "data.split": st.sampled_from(["iid", "non-iid-2", "dirichlet-0.3"]),
        "model.name": st.sampled_from([AUTO, "cnn", "preresnet18", "transformer", "mine:build"]),
        "model.norm": st.just(AUTO),
        "train.lr": st.one_of(st.just(AUTO), st.floats(1e-6, 10)),
        "train.milestones": st.sampled_from([AUTO, "", "3,7", 5]),
        "train.mask-fill": st.sampled_from([AUTO, "zero", "-inf", "none"]),
        "run.callbacks": st.sampled_from(["", "tensorboard", "tensorboard,a.b:C"]),
    },
)


def complaint(mapping) -> str:
    with pytest.raises(ConfigError) as raised:
        from_flat(mapping)
    return str(raised.value)


@given(EXAMPLES)
def test_settings_survive_the_way_there_and_back(mapping):
    settings = from_flat(mapping)
    flat = to_flat(settings)
    assert from_flat(flat) == settings
    assert flat.keys() == DEFAULTS.keys()
    assert AUTO not in {flat[key] for key in OTHER}
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())


def test_a_run_with_settings_of_another_version_is_not_read():
    assert from_stored({"seed": 3, "train.factor": 0.1}) == from_flat({"seed": 3})
    assert from_stored({"server.choose": "rolling"}) == from_flat({"server.slice-rule": "rolling"})
    with pytest.raises(
        ConfigError, match=r"another app or version, whose settings server\.speed, lr are not known here"
    ):
        from_stored({"server.speed": 1.0, "seed": 3, "lr": 0.1})


def test_keys_are_kebab_case_and_each_setting_is_explained():
    assert all(key == key.lower() and "_" not in key for key in SPECS)
    assert all(spec.help and spec.expected for spec in SPECS.values())


@pytest.mark.parametrize(
    ("mapping", "fill"),
    [({}, "zero"), ({"fidelity": "fixed"}, "-inf"), ({"fidelity": "fixed", "train.mask-fill": "none"}, "none")],
)
def test_the_fill_follows_fidelity_unless_it_is_named(mapping, fill):
    assert from_flat(mapping).train.mask_fill == fill


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("", ()),
        ("yogi(beta_1=0.5,beta_2=0.8)", (Yogi(beta_1=0.5, beta_2=0.8),)),
        ("adagrad( tau = 0.1, eta=1 ), momentum(0.9)", (Adagrad(eta=1.0, tau=0.1), Momentum(server_momentum=0.9))),
        ("momentum(0.9)", (Momentum(0.9),)),
        ("yogi(1, beta_2=0.8, 0.5)", (Yogi(eta=1, beta_1=0.5, beta_2=0.8),)),
    ],
)
def test_one_text_names_the_servers_stages(text, stages):
    settings = from_flat({"server.stages": text})
    assert parse_stages(settings.server.stages) == stages
    assert from_flat(to_flat(settings)) == settings


def test_each_stage_with_a_name_is_explained_and_public():
    assert [name for name in STAGES if name not in SPECS["server.stages"].help] == []
    assert {kind.__name__ for kind in STAGES.values()} <= set(heterofl_flwr.__all__)


class Delayed(ServerStage):
    def __init__(self, rounds):
        self.rounds = range(rounds)


def test_a_users_own_stage_is_named_by_its_module_and_imported_only_when_it_is_made():
    first, second = parse_stages(f"momentum(0.9), {__name__}:Delayed(rounds=2)")
    assert first == Momentum(0.9)
    assert second.rounds == range(2)
    assert from_flat({"server.stages": "not_installed:Stage(2)"}).server.stages == "not_installed:Stage(2)"
    for name, fault in {"not_installed:Stage": "cannot be loaded", "os:getcwd": "a subclass of ServerStage"}.items():
        with pytest.raises(ConfigError, match=f"server.stages .*{name}.*{fault}"):
            parse_stages(name)
    with pytest.raises(ConfigError, match="Delayed: missing a required argument: 'rounds'; expected rounds"):
        parse_stages(f"{__name__}:Delayed")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("sgd", "'sgd' is no stage; expected some of momentum, "),
        ("adam(lr=0.1)", "'lr=0.1' is no argument; expected eta, beta_1, beta_2, tau, each once"),
        ("adam(eta=fast)", "eta is 'fast'; expected a number"),
    ],
)
def test_an_optimizer_that_cannot_be_built_is_named(text, fault):
    assert fault in complaint({"server.stages": text}).removeprefix("server.stages: ")


def test_all_faults_are_reported_at_once():
    assert complaint({"engine.name": "fast"}).endswith("expected one of auto, plain, cohort, seats")
    text = complaint({"train.lr": "fast", "num-rounds": 2.0, "mix": "a1-q1", "seed": True})
    assert text.startswith("4 settings are not usable:\n")
    assert "  train.lr: found 'fast' (str), expected a number above 0, or 'auto'" in text
    assert {line.partition(":")[0].strip() for line in text.splitlines()[1:]} == {
        "train.lr",
        "num-rounds",
        "mix",
        "seed",
    }


def test_an_unknown_key_is_rejected_with_the_nearest():
    assert "did you mean train.batch-size?" in complaint({"train.batchsize": 1})
    assert "did you mean train.lr?" in complaint({"lr": 1})
    assert "heterofl sweep method=NAME" in complaint({"method": "fedavg"})
    assert "'heterofl settings' lists them all" in complaint({"zzz": 1})


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("model.norm", "gn", {"model.name": "transformer"}),
        ("model.norm", "gn", {"model.name": "net:build"}),
        ("model.hidden", "8,16", {"model.name": "net:build"}),
        ("model.shrink", "depth", {"model.name": "mlp"}),
        ("model.shrink", "depth", {"server.strategy": "fedh2l"}),
        ("model.ensemble", True, {}),
        ("server.slice-rule", "rolling", {"model.shrink": "depth"}),
        ("server.slice-rule", "rolling", {"train.distill": "drawn"}),
        ("server.slice-rule", "random-client", {"train.distill": "ordered"}),
        ("train.exits", "mutual", {"model.shrink": "depth", "train.distill": "all"}),
        ("model.scaler", False, {"model.name": "mlp"}),
        ("model.scaler", False, {"model.name": "net:build"}),
        ("distill.models", "cnn,mlp", {}),
        ("distill.steps", 3, {"train.distill": "all"}),
        ("distill.weight", 2.0, {}),
        ("distill.weight", 2.0, {"train.distill": "ordered"}),
        ("distill.label-share", 0.5, {"train.distill": "ordered"}),
        ("distill.label-share", 0.5, {"server.strategy": "fedh2l"}),
        ("distill.ramp", 0.3, {"train.distill": "all"}),
        ("global-rate", "a", {"server.strategy": "fedh2l"}),
        ("server.roll-by", 6, {}),
        ("server.robust-trim", 0.1, {}),
        ("server.robust-trim", 0.1, {"server.robust": "median"}),
        ("server.rank-every", 9, {"server.slice-rule": "rolling"}),
        ("asynchronous.staleness", 1.0, {}),
        ("privacy.delta", 1e-3, {"privacy.clip": 1.0}),
        ("evaluate.metric", "mine:metric", {"evaluate.every": 0}),
        ("engine.cohort", 10, {"engine.name": "plain"}),
        ("run.resume", True, {}),
    ],
)
def test_settings_that_contradict_one_another_are_rejected(key, value, others):
    assert complaint({key: value, **others}).startswith(f"{key}: found {value!r}, ")


def test_a_sweep_leaves_out_the_architectures_of_fedh2l_where_clients_have_slices():
    assert "distill.models" in unused_settings({"distill.models": "cnn,mlp"})
    assert "distill.models" not in unused_settings({"distill.models": "cnn,mlp", "server.strategy": "fedh2l"})


AVERAGING = {"assignment": "dynamic", "train.upload": "int8", "train.distill": "all"}
AVERAGING |= {"server.slice-rule": "rolling", "server.shared": "a.*"}
AVERAGING |= {"server.stages": "adam", "server.robust": "median", "server.aggregator": "product"}
AVERAGING |= {"server.norm-bound": 2.0}


def test_settings_of_parameters_that_travel_need_some_that_do():
    lines = complaint({"server.strategy": "fedh2l", **AVERAGING}).splitlines()[1:]
    assert [line.strip().partition(":")[0] for line in lines] == list(AVERAGING)
    assert all("but with server.strategy=fedh2l no parameters travel; expected " in line for line in lines)


def test_toml_carries_any_text_and_flower_reads_it_as_we_do():
    values = to_flat(from_flat({"sample.wait": math.inf})) | {"run.dir": 'a "b" \\ é\n\t\u2028'}
    table = tomllib.loads(to_toml(values))
    assert flatten_dict(table) == flatten(table) == values


@pytest.mark.parametrize("text", ['train.lr = 0.1\n"train.lr" = 0.2', '"train.lr" = 0.2\n[train]\nlr = 0.1'])
def test_a_setting_that_a_file_has_twice_is_refused(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'train\.lr' is set twice, by this name and as 'lr' in 'train'"):
        read_config(tmp_path / "mine.toml")


def test_a_run_that_waits_without_a_limit_can_be_resumed():
    settings = from_flat({"sample.wait": math.inf})
    assert from_stored(json.loads(to_json(to_flat(settings)))) == settings


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
    ("train.clip", ["1", True, None, math.nan, math.inf, 10**400, -1e-9]),
    ("seed", [-1, None, [1, 2], {"a": 1}, b"x"]),
    ("sample.fraction", [0, 1.0001]),
    ("train.momentum", [1.0, -0.1]),
    ("server.robust-trim", [False, "0.1", 0.5]),
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
