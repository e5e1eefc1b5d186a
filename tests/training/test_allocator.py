import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from heterofl_flwr.training import give_back_freed_memory, keep_freed_memory

ROOT = Path(__file__).parents[2]


def test_memory_that_is_freed_and_taken_again_costs_few_page_faults():
    """In a process of its own, which it changes. Blocks this large glibc else always takes from the system."""
    code = """if True:
        import resource, torch
        from heterofl_flwr.training import keep_freed_memory

        def faults():
            torch.ones(12 << 20)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                torch.ones(12 << 20)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        print(faults(), keep_freed_memory(), faults())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    before, changed, after = done.stdout.split()
    if changed == "False":
        pytest.skip("needs glibc")
    assert int(after) < 0.8 * int(before)  # a system that reclaims idle memory adds some


def test_large_blocks_go_back_when_they_are_freed():
    code = """if True:
        from pathlib import Path
        from heterofl_flwr.training import give_back_freed_memory

        def in_use():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        def left():
            bytearray(20 << 20)  # from now on glibc would keep blocks of this size
            before = in_use()
            blocks = [bytearray(4 << 20) for _ in range(8)]
            last = bytearray(1 << 16)
            del blocks
            return in_use() - before, last

        print(give_back_freed_memory(), left()[0])
    """
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    changed, left = done.stdout.split()
    if changed == "False":
        pytest.skip("needs glibc")
    assert int(left) < 4 << 20


class Missing:
    """A C library without the switch."""


def nothing_to_load(name):
    raise OSError(name)


def no_library_without_a_name(name):
    raise TypeError(name)


def one_that_refuses(name):
    return type("Library", (), {"mallopt": staticmethod(lambda *_: 0)})


@pytest.mark.parametrize("library", [lambda _: Missing(), nothing_to_load, no_library_without_a_name, one_that_refuses])
def test_without_the_switch_nothing_is_changed(monkeypatch, library):
    monkeypatch.setattr(ctypes, "CDLL", library)
    assert keep_freed_memory() is False
    assert give_back_freed_memory() is False
