"""A faster exit of processes that have loaded torch."""

import atexit
import gc
import sys


def exit_fast() -> None:
    """Let this process exit without Python's last search for garbage, which takes half a second among torch's objects.

    A process that has loaded triton searches all the same: triton 3.9 reports the objects that remain as leaked.
    """
    atexit.register(_freeze)


def _freeze() -> None:
    if "triton" not in sys.modules:
        gc.freeze()
