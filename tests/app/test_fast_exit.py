"""The exit of a process that has loaded torch."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, gc, sys
from heterofl_flwr.common.fast_exit import exit_fast

atexit.register(lambda: print(gc.get_freeze_count() > 0))  # runs last
exit_fast()
{line}
"""


@pytest.mark.parametrize(("line", "frozen"), [("", "True"), ("sys.modules['triton'] = sys", "False")])
def test_objects_are_frozen_at_exit_unless_triton_would_report_them(line, frozen):
    command = [sys.executable, "-c", PROGRAM.format(line=line)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == frozen
