"""Runs ``checks.py`` in a process of its own, because a device that is registered with torch stays until its end."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    "which", [pytest.param("not slow", marks=pytest.mark.slow), pytest.param("slow", marks=pytest.mark.release)]
)
def test_nothing_mixes_devices(which):
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", which]
    checks = subprocess.run(
        [*command, "tests/second_device/checks.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checks.returncode == 0, checks.stdout + checks.stderr
