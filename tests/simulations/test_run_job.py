"""Jobs: their names, their run config, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings import from_flat, to_flat
from simulations.sweep.__main__ import CONF
from simulations.sweep.job import INCIDENTAL, Job, job_of
from simulations.sweep.plan import flat
from tests.simulations.sweeping import planned


def job(*overrides: str) -> Job:
    (own,) = planned(*overrides).values()
    return own.job


def test_the_name_tells_data_split_mix_assignment_and_seed():
    found = job("data=mnist", "split=non-iid-2", "mix=e-a", "assignment=dynamic", "seed=7")
    assert found.name.startswith("mnist-non-iid-2-a1-e1-dynamic-s7-")
    assert len(found.name.rpartition("-")[2]) == 8
    assert found.path == Path("runs", "jobs", found.name).resolve()


def test_names_stay_as_they_are():
    # A name that changes makes all runs of earlier versions be made again.
    dynamic = "assignment=dynamic"
    assert job("data=mnist", "mix=e").name == "mnist-iid-e1-fix-s0-5e2d3729"
    assert (
        job("data=cifar10", "mix=a-e", "split=non-iid-2", dynamic).name == "cifar10-non-iid-2-a1-e1-dynamic-s0-d5a07d10"
    )
    assert job("model.norm=gn", "engine.clients=7", dynamic).name == "digits-iid-a1-b1-c1-d1-e1-dynamic-s0-92f2ff41"


@pytest.mark.parametrize(
    "same",
    [
        "data.root=elsewhere",
        "data.name=ylecun/mnist",
        "train.lr=0.01",
        "assignment=fix",
        "model=cnn",
        "folder=elsewhere",
        "engine=ray",
        "engine.clients=100",
        "engine.cpus=2",
        "engine.device=cpu",
        "engine.parallel=3",
        "engine.timeout=60",
        "engine.window=8",
        "report=lean",
        "sample.wait=99",
        "sample.min-nodes=10",
        "mix=e7",
    ],
)
def test_what_changes_no_result_changes_no_name(same):
    assert job("data=mnist", "mix=e", same).name == job("data=mnist", "mix=e").name


@pytest.mark.parametrize(
    "other",
    [
        "seed=1",
        "mix=d",
        "split=non-iid-2",
        "num-rounds=3",
        "model=preresnet18",
        "model.norm=gn",
        "model.scaler=false",
        "method=heterofl-fixed",
        "train.clip=0",
        "engine.name=plain",
        "engine.clients=50",
        "evaluate=each-round",
        "run.patience=3",
    ],
)
def test_what_may_change_a_result_changes_the_name(other):
    assert job("data=mnist", "mix=e", other).name != job("data=mnist", "mix=e").name
    assert other.partition("=")[0] in ("seed", "mix", "split", "method", "evaluate", "model") or job(
        "data=mnist", "mix=e", other
    ).changes.keys() == {other.partition("=")[0]}


def test_a_setting_that_comes_later_changes_no_name(monkeypatch):
    from simulations.sweep import job as module

    found = job("data=mnist", "mix=e", "model.norm=gn")
    before = found.name
    monkeypatch.setattr(module, "to_flat", lambda settings: {**to_flat(settings), "train.new": 1})
    assert found.name == before


def test_long_mixes_and_paths_make_usable_names(tmp_path):
    rates = "-".join(f"0.{number}x1" for number in range(10, 60))
    folder = tmp_path / "my data (1)"
    folder.mkdir()
    found = job(f"mix={rates}", f"data.name='{folder}'")
    assert len(found.name) < 120
    assert found.name.startswith("my-data-1--iid-0.59x1-")
    assert found.settings.data.name == str(folder)


def test_a_relative_data_folder_is_made_absolute(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    found = job_of({**composed(), "data.name": "pictures"})
    assert found.settings.data.name == str(tmp_path / "pictures")


def test_the_run_config_is_that_of_heterofl_run(monkeypatch, tmp_path):
    monkeypatch.setenv("HETEROFL_DATA", str(tmp_path))
    found = job("data=mnist", "mix=e")
    own = {"run.dir": str(found.path), "data.root": str(tmp_path), "sample.min-nodes": 100, "engine.window": 64}
    assert found.config == {**to_flat(found.settings), **own}
    assert from_flat(found.config).num_rounds == 200
    assert job("sample.min-nodes=3").config["sample.min-nodes"] == 3
    assert job("data=digits").config["sample.min-nodes"] == 20


def test_incidental_settings_exist():
    assert set(INCIDENTAL) <= job().config.keys()


def composed() -> dict[str, object]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return flat(compose("config"))


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("engine.clients", 0, "engine.clients: found 0 (int), expected an integer of 1 or more, or 'auto'"),
        ("engine.gpus", 1.5, "engine.gpus: found 1.5 (float), expected a share such as 0.25, or a whole number, or"),
        ("engine.grid", "cluster", "engine.grid: found 'cluster' (str), expected one of local, ray"),
        ("engine.cpus", "auto", "engine.cpus: found 'auto' (str), expected an integer of 1 or more"),
        ("engine.parallel", True, "engine.parallel: found True (bool), expected"),
        ("dry", "yes", "dry: found 'yes' (str), expected true or false"),
        ("folder", "", "folder: found '' (str), expected a path"),
        ("run.dir", "x", "run.dir: found 'x', but a sweep names and resumes its jobs itself; set folder"),
        ("run.resume", True, "run.resume: found True, but a sweep"),
        ("train.lr", "fast", "train.lr: found 'fast' (str), expected a number above 0, or 'auto'"),
        ("train.speed", 3, "train.speed: no setting has this name"),
        ("train.lr", None, "train.lr: found None (NoneType), expected a number above 0"),
    ],
)
def test_a_bad_value_names_key_found_and_expected(key, value, text):
    with pytest.raises(ConfigError) as error:
        job_of({**composed(), key: value})
    assert str(error.value).startswith(text)


def test_all_faults_are_told_together():
    with pytest.raises(ConfigError) as error:
        job_of({**composed(), "engine.clients": 0, "dry": 3, "train.lr": "x", "seed": -1})
    assert all(key in str(error.value) for key in ("engine.clients", "dry", "train.lr", "seed"))


def test_minus_infinity_is_a_word_for_masks():
    assert job("train.mask-fill=-inf").settings.train.mask_fill == "-inf"


def test_auto_and_given_numbers_of_how_to_start():
    assert job("engine.gpus=0.25", "engine.parallel=2").launch == replace(job().launch, gpus=0.25, parallel=2)
    assert job("engine=ray", "engine.gpus=0").launch == replace(job().launch, grid="ray", gpus=0.0)
