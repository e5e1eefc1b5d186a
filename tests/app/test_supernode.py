"""``heterofl supernode``: Flower's program, whose process ends with it."""

import subprocess
import sys

import pytest

LASTING = """
import importlib.metadata, sys, threading
from types import SimpleNamespace

def supernode():
    print(*sys.argv, flush=True)
    threading.Thread(target=threading.Event().wait).start()  # as that of Flower's SuperNode, which serves its clients

importlib.metadata.entry_points = lambda **which: [SimpleNamespace(load=lambda: supernode)]
from heterofl_flwr.app.main import main
main(["supernode", "--superlink", "here:1"])
"""


def ended(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)


def test_the_process_ends_with_the_work_of_the_supernode():
    process = ended("-c", LASTING)
    assert process.stdout == "flower-supernode --superlink here:1\n"
    assert process.returncode == 1
    assert "the SuperNode has ended" in process.stderr


@pytest.mark.slow
def test_arguments_and_help_are_flowers():
    assert ended("-m", "heterofl_flwr", "supernode", "--help").stdout.startswith("usage: flower-supernode")
    assert ended("-m", "heterofl_flwr", "supernode", "--no-such-option").returncode == 2
