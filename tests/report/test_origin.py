import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from heterofl_flwr.report import origin

ROOT = Path(__file__).parents[2]


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


def test_a_checkout_has_its_commit(checkout):
    assert origin.commit_of(checkout, "package") == git(checkout, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["package/module.py", "package/new.py"])
def test_a_changed_package_is_not_that_of_its_commit(checkout, name):
    (checkout / name).write_text("x = 2\n", encoding="utf-8")
    assert origin.commit_of(checkout, "package") == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_changes_beside_the_package_do_not_matter(checkout):
    (checkout / "notes.md").write_text("x\n", encoding="utf-8")
    assert not origin.commit_of(checkout, "package").endswith("-dirty")


def test_a_package_below_someone_elses_repository_is_not_part_of_it(checkout):
    installed = checkout / "site-packages"
    (installed / "package").mkdir(parents=True)
    assert origin.commit_of(installed, "package") is None
    assert origin.commit_of(checkout, "other") is None


def test_a_folder_that_is_no_repository_has_no_commit(tmp_path):
    assert origin.commit_of(tmp_path, "package") is None


def test_a_repository_without_a_commit_has_none(tmp_path):
    (tmp_path / "package").mkdir()
    git(tmp_path, "init", "--quiet")
    assert origin.commit_of(tmp_path, "package") is None


def test_flowers_copy_has_the_commit_of_the_editable_install(checkout, tmp_path, monkeypatch):
    (checkout / "package").rename(checkout / "heterofl_flwr")
    monkeypatch.setattr(origin, "PACKAGE", tmp_path / "apps" / "heterofl_flwr")
    url = f'{{"dir_info": {{"editable": true}}, "url": "{checkout.as_uri()}"}}'
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(url))
    assert origin.commit() == git(checkout, "rev-parse", "HEAD") + "-dirty"


class Installed:
    """Stands for the metadata of an installed package."""

    def __init__(self, url: str | None) -> None:
        self.url = url

    def read_text(self, name: str) -> str | None:
        return self.url if name == "direct_url.json" else None


@pytest.mark.parametrize("url", [None, "", "[]", "{}", '{"url": "https://example.org/a.whl"}'])
def test_a_package_from_an_index_has_no_commit(tmp_path, monkeypatch, url):
    monkeypatch.setattr(origin, "PACKAGE", tmp_path / "site-packages" / "heterofl_flwr")
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(url))
    assert origin.commit() == "unknown"


def test_a_package_that_is_not_installed_has_no_commit(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(origin, "PACKAGE", tmp_path / "heterofl_flwr")
    monkeypatch.setattr(metadata, "distribution", missing)
    assert origin.commit() == "unknown"


def test_without_git_the_commit_is_not_known(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert origin.commit() == "unknown"


def test_git_that_hangs_is_given_up(monkeypatch):
    def hangs(*arguments, **options):
        raise subprocess.TimeoutExpired("git", 60)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert origin.commit() == "unknown"


def test_the_commit_is_that_of_the_first_call(monkeypatch):
    first = origin.commit()
    monkeypatch.setattr(origin, "PACKAGE", ROOT / "elsewhere")
    assert origin.commit() == first


def test_the_machine_is_named_by_processor_cores_and_gpu(monkeypatch):
    monkeypatch.setattr(origin.torch.cuda, "device_count", lambda: 0)
    text = origin.machine()
    assert " cores, no GPU" in text
    assert "/" not in text


def test_gpus_are_counted_and_named(monkeypatch):
    monkeypatch.setattr(origin.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(origin, "_ask", lambda *words: "NVIDIA H200\nNVIDIA H200")
    assert origin.machine().endswith(", 2 x NVIDIA H200")


def test_gpus_without_a_name_are_counted(monkeypatch):
    monkeypatch.setattr(origin.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(origin, "_ask", lambda *words: None)
    assert origin.machine().endswith(", 1 x GPU")


def test_the_command_is_what_one_would_type(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/run.py", "-m", "mix=a e"])
    monkeypatch.setitem(sys.modules, "__main__", _main("simulations.run"))
    assert origin.command() == "python -m simulations.run -m 'mix=a e'"
    monkeypatch.setitem(sys.modules, "__main__", _main("package.__main__"))
    assert origin.command() == "python -m package -m 'mix=a e'"
    monkeypatch.setitem(sys.modules, "__main__", _main(None))
    assert origin.command() == "/somewhere/run.py -m 'mix=a e'"


def _main(name):
    return SimpleNamespace(__spec__=SimpleNamespace(name=name) if name else None)
