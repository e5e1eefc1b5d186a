"""What macOS and Windows lack, taken away: the package is imported, and a run takes two rounds, without it.

This is no macOS and no Windows: their own ways of doing the same are not tried here.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Python runs a module of this name when it starts.
LACKING = """
import builtins, errno, os, pathlib, signal

import psutil  # which knows what system this is in truth

FUNCTIONS = "fork forkpty killpg waitid wait3 wait4 getpgid setpgid setsid sched_getaffinity sysconf getuid geteuid"
for name in (*FUNCTIONS.split(), "O_DIRECTORY", "O_NOFOLLOW", "mkfifo", "fchmod"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGALRM", "setitimer"):
    delattr(signal, name)
MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}
load = builtins.__import__


def load_portable(name, globals=None, *more, **options):
    importer = (globals or {}).get("__name__", "").partition(".")[0]
    if name in MODULES and importer in ("filelock", "heterofl_flwr"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return load(name, globals, *more, **options)


builtins.__import__ = load_portable


def without_system_folders(function):
    def call(path, *arguments, **options):
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(errno.ENOENT, "not on this system", str(path))
        return function(path, *arguments, **options)
    return call


for name in ("open", "stat"):  # which all other methods of paths use; psutil uses no paths
    setattr(pathlib.Path, name, without_system_folders(getattr(pathlib.Path, name)))
"""

RUN = """
import importlib, os, pkgutil, sys
import filelock, psutil
import heterofl_flwr
from heterofl_flwr import report
from heterofl_flwr.app.cli.main import main

if __name__ == "__main__":
    assert not hasattr(os, "fork") and not hasattr(os, "killpg") and not filelock.has_fcntl
    for module in pkgutil.walk_packages(heterofl_flwr.__path__, "heterofl_flwr."):
        module.name.endswith("__main__") or importlib.import_module(module.name)
    own = ["--set", "run.callbacks=", "--set", "train.epochs=1", "--set", "model.hidden=4,8"]
    assert main(["run", "--grid", "local", "--clients", "4", "--rounds", "2", "--out", "run", *own]) == 0
    print("left:", psutil.Process().children())
"""


@pytest.mark.slow
def test_a_run_of_two_rounds_needs_nothing_that_linux_alone_has(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(LACKING)
    (tmp_path / "script.py").write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^round (\d)/2", done.stdout, re.MULTILINE) == ["1", "2"]
    assert "left: []" in done.stdout
    assert list((tmp_path / "run" / "models").iterdir())
