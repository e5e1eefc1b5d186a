import subprocess
import sys
from pathlib import Path

import pytest

from heterofl_flwr.runs import origin


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch):
    monkeypatch.setenv(origin.COMMAND, "")  # so that it is as before afterwards
    monkeypatch.delenv(origin.COMMAND)
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


@pytest.mark.parametrize(("changed", "suffix"), [(None, ""), ("notes.md", ""), ("package/new.py", "-dirty")])
def test_a_checkout_has_its_commit_marked_where_changed(checkout, changed, suffix):
    if changed:
        (checkout / changed).write_text("x = 2\n", encoding="utf-8")
    commit, head = origin.commit_of(checkout, "package"), git(checkout, "rev-parse", "HEAD")
    assert (commit, origin.short_commit(commit)) == (head + suffix, head[:7] + suffix)


def test_a_package_outside_of_a_checkout_has_no_commit(checkout, monkeypatch):
    installed = checkout / "site-packages"  # below someone else's repository
    (installed / "package").mkdir(parents=True)
    assert origin.commit_of(installed, "package") is None
    assert origin.commit_of(checkout, "other") is None
    monkeypatch.setattr(origin, "PACKAGE", installed / "package")
    assert origin.commit() == "unknown"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("/somewhere/python -m simulations.sweep -m mix=a_e", "python -m simulations.sweep -m 'mix=a e'"),
        ("/somewhere/python /somewhere/bin/heterofl run --rounds 3", "heterofl run --rounds 3"),
        ("/somewhere/python /bin/flwr-serverapp --insecure --token abc", "flwr run ."),
    ],
)
def test_the_command_is_what_one_would_type(words, shown, monkeypatch):
    own = [word.replace("_e", " e") for word in words.split()]
    monkeypatch.setattr(sys, "orig_argv", own)
    monkeypatch.setattr(sys, "argv", ["/x/__main__.py", *own[3:]] if own[1] == "-m" else own[1:])
    assert origin.command() == shown


def test_processes_of_a_run_know_the_command_that_started_it(monkeypatch):
    typed = origin.command()
    monkeypatch.setattr(sys, "argv", ["/bin/flwr-simulation", "--token", "abc"])
    assert origin.command() == typed
