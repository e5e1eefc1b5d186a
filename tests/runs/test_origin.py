import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from heterofl_flwr.runs import origin


@pytest.fixture(autouse=True)
def _asked_anew():
    origin.commit.cache_clear()
    origin.machine.cache_clear()
    yield
    origin.commit.cache_clear()
    origin.machine.cache_clear()


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Return a repository with a package of one module, committed."""
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    (package / "module.py").write_text("x = 1\n", encoding="utf-8")
    git(package.parent, "init", "--quiet")
    git(package.parent, "add", ".")
    identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    git(package.parent, *identity, "-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "-m", "first")
    return package.parent


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("changed", "suffix"), [(None, ""), ("notes.md", ""), ("package/module.py", "-dirty"), ("package/new.py", "-dirty")]
)
def test_a_checkout_has_its_commit_and_a_mark_where_the_package_was_changed(checkout, changed, suffix):
    if changed:
        (checkout / changed).write_text("x = 2\n", encoding="utf-8")
    assert origin.commit_of(checkout, "package") == git(checkout, "rev-parse", "HEAD") + suffix


def test_a_package_outside_of_a_commit_has_none(checkout, tmp_path):
    installed = checkout / "site-packages"  # below someone else's repository
    (installed / "package").mkdir(parents=True)
    assert origin.commit_of(installed, "package") is None
    assert origin.commit_of(checkout, "other") is None
    assert origin.commit_of(tmp_path, "package") is None
    (tmp_path / "package").mkdir()
    git(tmp_path, "init", "--quiet")
    assert origin.commit_of(tmp_path, "package") is None


class Installed:
    """Stands for the metadata of an installed package."""

    def __init__(self, url: str | None) -> None:
        self.url = url

    def read_text(self, name: str) -> str | None:
        return self.url if name == "direct_url.json" else None


def test_flowers_copy_has_the_commit_of_the_editable_install(checkout, tmp_path, monkeypatch):
    (checkout / "package").rename(checkout / "heterofl_flwr")
    monkeypatch.setattr(origin, "PACKAGE", tmp_path / "apps" / "heterofl_flwr")
    url = f'{{"dir_info": {{"editable": true}}, "url": "{checkout.as_uri()}"}}'
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(url))
    commit = origin.commit()
    assert commit == git(checkout, "rev-parse", "HEAD") + "-dirty"
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(None))
    assert origin.commit() == commit  # a process keeps the code that it has loaded


@pytest.mark.parametrize("url", [None, "[]", "{}", '{"url": "https://example.org/a.whl"}', "not installed"])
def test_a_package_without_a_checkout_has_no_commit(url, tmp_path, monkeypatch):
    def distribution(name):
        if url == "not installed":
            raise metadata.PackageNotFoundError(name)
        return Installed(url)

    monkeypatch.setattr(origin, "PACKAGE", tmp_path / "site-packages" / "heterofl_flwr")
    monkeypatch.setattr(metadata, "distribution", distribution)
    assert origin.commit() == "unknown"


@pytest.mark.parametrize("fault", ["missing", "hangs"])
def test_without_an_answer_of_git_the_commit_is_not_known(fault, monkeypatch):
    def hangs(*arguments, **options):
        raise subprocess.TimeoutExpired("git", 60)

    if fault == "missing":
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setattr(subprocess, "run", hangs)
    assert origin.commit() == "unknown"


@pytest.mark.parametrize(
    ("number", "names", "shown"),
    [(0, None, "no GPU"), (2, "NVIDIA H200\nNVIDIA H200", "2 x NVIDIA H200"), (1, None, "1 x GPU")],
)
def test_the_machine_is_named_by_processor_cores_and_gpus(number, names, shown, monkeypatch):
    monkeypatch.setattr(origin.torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(origin, "_ask", lambda *words: names)
    assert re.fullmatch(rf"[^/]+, \d+ cores, {shown}", origin.machine())


CHANGED = {"data.name": "mnist", "num-rounds": 3, "hub.token": "abc"}


@pytest.mark.parametrize(
    ("words", "module", "shown"),
    [
        ("/somewhere/run.py -m mix=a_e", "simulations.sweep", "python -m simulations.sweep -m 'mix=a e'"),
        ("run.py -m mix=a_e", "package.__main__", "python -m package -m 'mix=a e'"),
        ("/somewhere/run.py -m mix=a_e", None, "/somewhere/run.py -m 'mix=a e'"),
        ("/somewhere/bin/heterofl run --rounds 3", None, "heterofl run --rounds 3"),
        # Nothing is shown of the arguments of Flower's and Ray's own processes.
        ("/ray/_private/workers/default_worker.py --redis-password=abc", None, "unknown"),
        ("x.py --pipe 17", "joblib.externals.loky.backend.popen_loky_posix", "unknown"),
        *(
            (f"/bin/{name} --insecure --token abc", None, "flwr run .")
            for name in ("flwr-serverapp", "flower-superlink")
        ),
    ],
)
def test_the_command_is_what_one_would_type(started, words, module, shown):
    assert started(*(word.replace("_e", " e") for word in words.split()), module=module) == shown


def test_the_command_of_a_run_that_flower_started_has_the_settings_that_it_changed(started):
    assert started("/bin/flwr-serverapp", "--token", "abc", run_config=CHANGED) == (
        """flwr run . --run-config 'data.name="mnist" num-rounds=3 hub.token=***'"""
    )


def test_processes_of_a_run_know_the_command_that_started_it(started, monkeypatch):
    monkeypatch.setenv(origin.COMMAND, "that of a run around this one")
    with origin.command_known("heterofl run"):
        assert started("/bin/flwr-simulation", "--token", "abc") == "heterofl run"
    assert origin.command() == "that of a run around this one"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--token", "abc", "--rounds", "3"], ["--token", "***", "--rounds", "3"]),
        (["--api-key=abc", "wandb.api_key=abc"], ["--api-key=***", "wandb.api_key=***"]),
        (["--set=hub.token=abc", "seed=1 api_key=abc"], ["--set=hub.token=***", "seed=1 api_key=***"]),
        (["--password", "--quiet"], ["--password", "--quiet"]),
        (["https://user:abc@host/x"], ["https://***@host/x"]),
        (["hf_abcdefghijklmnop"], ["***"]),
        (["note=" + "0123456789abcdef" * 4], ["note=***"]),
        (["mix=a1-b1-c1-d1-e1", "train.lr=0.05"], ["mix=a1-b1-c1-d1-e1", "train.lr=0.05"]),
        (["results/mnist/iid_e_dynamic_norm-none_seed-0"], ["results/mnist/iid_e_dynamic_norm-none_seed-0"]),
        (["runs/mnist-iid-a1-e1-dynamic-s0-730c8e20"], ["runs/mnist-iid-a1-e1-dynamic-s0-730c8e20"]),
    ],
)
def test_secrets_are_hidden_and_nothing_else_is(words, shown):
    assert origin.without_secrets(words) == shown


def test_a_device_is_named_with_its_model(monkeypatch):
    monkeypatch.setattr(origin, "_ask", lambda *words: "NVIDIA H200")
    assert origin.device_name(torch.device("cpu")) == "cpu"
    assert origin.device_name(torch.device("cuda", 1)) == "cuda:1 (NVIDIA H200)"


@pytest.fixture
def started(monkeypatch):
    """Return a function that computes the command of a process from its words and the module that it runs."""

    def command(*words: str, module: str | None = None, **options) -> str:
        spec = SimpleNamespace(name=module) if module else None
        monkeypatch.setattr(sys, "argv", list(words))
        monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
        return origin.command(**options)

    return command
